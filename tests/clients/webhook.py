"""Admission webhooks in the standard library's Python: /team labels what is made, /images refuses other registries.

Usage: webhook.py CERTIFICATE KEY. Prints the port that it listens on, and then a line for each review.
"""

import base64
import http.server
import json
import ssl
import sys


def team(request):
    if "labels" in request["object"]["metadata"]:
        patch = [{"op": "add", "path": "/metadata/labels/team", "value": request["namespace"]}]
    else:
        patch = [{"op": "add", "path": "/metadata/labels", "value": {"team": request["namespace"]}}]
    encoded = base64.b64encode(json.dumps(patch).encode()).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": encoded, "warnings": ["a label was added"]}


def images(request):
    foreign = [c["image"] for c in request["object"]["spec"]["containers"] if not c["image"].startswith("own/")]
    if not foreign:
        return {"allowed": True, "auditAnnotations": {"checked": "yes"}}
    return {"allowed": False, "status": {"code": 422, "message": "not from here: " + ", ".join(foreign)}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = review["request"]
        path = self.path.split("?")[0]
        response = {"/team": team, "/images": images}[path](request)
        response["uid"] = request["uid"]
        answer = {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        told = (path, request["operation"], request["options"].get("fieldManager"), request["userInfo"]["username"])
        print(*told, flush=True)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
