//! `kubectl create token`, with every kubectl that is there: who has such a token is the account, for as long as upstream
//! would let it be (KEP-1205, kubectl reference, `create token`).

use jiff::{SignedDuration, Timestamp};
use kcore::{Clock as _, SystemClock};
use kplane::Cluster;
use serde_json::{Value, json};

use crate::support::{Kubectl, kubectls};

const UNAUTHORIZED: &str = "You must be logged in to the server (Unauthorized)";
const POD: &str = "authentication.kubernetes.io/pod-name";

/// kubectl with nothing but a token to show for itself.
struct Bearer<'a> {
    kubectl: &'a Kubectl,
    config: String,
}

impl<'a> Bearer<'a> {
    /// The configuration that `kubectl` has, without the administrator's certificate, which would count before the token.
    async fn new(kubectl: &'a Kubectl) -> Self {
        let mut config = read(kubectl, "config view --raw -o json").await;
        config["users"] = json!([]);
        config["contexts"][0]["context"]["user"] = json!("");
        Self { kubectl, config: kubectl.file("bearer", &config.to_string()) }
    }

    fn line(&self, token: &str, line: &str) -> String {
        format!("--kubeconfig={} --token={token} {line}", self.config)
    }

    async fn who(&self, token: &str) -> Value {
        let said = read(self.kubectl, &self.line(token, "auth whoami -o json")).await;
        said["status"]["userInfo"].clone()
    }

    async fn refused(&self, token: &str, line: &str, why: &str) {
        let said = self.kubectl.fail(&self.line(token, line)).await;
        assert!(said.contains(why), "kubectl {line}\nsaid   {said}\nwanted {why}");
    }
}

async fn read(kubectl: &Kubectl, line: &str) -> Value {
    serde_json::from_str(&kubectl.run(line).await).unwrap()
}

/// What `kubectl create token robot` prints with these flags.
async fn token(kubectl: &Kubectl, flags: &str) -> String {
    kubectl.run(&format!("create token robot {flags}")).await.trim().to_owned()
}

/// What the API server thinks of a token that is shown to one of these audiences.
async fn review(kubectl: &Kubectl, token: &str, audience: &str) -> Value {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    });
    // Without PATCH there is no telling from OpenAPI v3 whether the server checks fields, so kubectl does it by v2 in protobuf.
    let path = kubectl.file("review", &review.to_string());
    read(kubectl, &format!("create -o json -f {path}")).await["status"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_stand_for_the_account() {
    for program in kubectls() {
        let cluster = Cluster::builder().nodes(0).start().await.unwrap();
        let kubectl = &Kubectl::of(cluster, program).await;
        kubectl.run("create serviceaccount robot").await;
        kubectl.run("create role reader --verb=get,list --resource=serviceaccounts,pods").await;
        kubectl.run("create rolebinding readers --role=reader --serviceaccount=default:robot").await;
        let bearer = Bearer::new(kubectl).await;
        plain(kubectl, &bearer).await;
        for_a_time(kubectl).await;
        checked_by_the_document(kubectl).await;
        for_an_audience(kubectl, &bearer).await;
        bound_to_a_pod(kubectl, &bearer).await;
        let last = token(kubectl, "").await;
        assert_eq!(bearer.who(&last).await["username"], "system:serviceaccount:default:robot");
        kubectl.run("delete serviceaccount robot").await;
        bearer.refused(&last, "auth whoami", UNAUTHORIZED).await;
        // Another account of that name is not the same.
        kubectl.run("create serviceaccount robot").await;
        bearer.refused(&last, "auth whoami", UNAUTHORIZED).await;
        let none = kubectl.fail("create token nobody").await;
        assert!(none.contains("serviceaccounts \"nobody\" not found"), "{none}");
    }
}

/// The token says who the caller is.
async fn plain(kubectl: &Kubectl, bearer: &Bearer<'_>) {
    let token = token(kubectl, "").await;
    let account = read(kubectl, "get serviceaccount robot -o json").await;
    let user = bearer.who(&token).await;
    assert_eq!(user["username"], "system:serviceaccount:default:robot");
    assert_eq!(user["uid"], account["metadata"]["uid"]);
    let groups = json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
    assert_eq!(user["groups"], groups);
    assert_eq!(
        kubectl.run(&bearer.line(&token, "get serviceaccount robot -o name")).await.trim(),
        "serviceaccount/robot"
    );
    bearer.refused(&format!("{token}x"), "get pods", UNAUTHORIZED).await;
}

async fn for_a_time(kubectl: &Kubectl) {
    let before = SystemClock.now();
    let answer = read(kubectl, "create token robot --duration=20m -o json").await;
    assert_eq!(answer["spec"]["expirationSeconds"], 1200);
    let ends: Timestamp = answer["status"]["expirationTimestamp"].as_str().unwrap().parse().unwrap();
    // Times on the wire have whole seconds.
    let start = ends - SignedDuration::from_secs(1200);
    assert!(start > before - SignedDuration::from_secs(1) && start <= SystemClock.now(), "{answer}");
    let why = kubectl.fail("create token robot --duration=5m").await;
    assert!(why.contains("may not specify a duration less than 10 minutes"), "{why}");
}

/// A token for others is none for the API server, which vouches for it to them alone.
async fn for_an_audience(kubectl: &Kubectl, bearer: &Bearer<'_>) {
    let token = token(kubectl, "--audience=vault").await;
    bearer.refused(&token, "auth whoami", UNAUTHORIZED).await;
    let known = review(kubectl, &token, "vault").await;
    assert_eq!((&known["authenticated"], &known["audiences"]), (&json!(true), &json!(["vault"])));
    assert_eq!(known["user"]["username"], "system:serviceaccount:default:robot");
    let other = review(kubectl, &token, "other").await;
    assert_ne!(other["authenticated"], json!(true), "{other}");
}

/// What kubectl checks by the document itself: fields that are not there and that have the wrong type (kubectl reference,
/// `create --validate`; k8s.io/kubectl `pkg/validation`).
async fn checked_by_the_document(kubectl: &Kubectl) {
    let kind = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"});
    for (spec, why) in [
        (json!({"user": "a", "colour": 1}), "unknown field \"colour\""),
        (json!({"user": "a", "groups": "b"}), "invalid type for"),
    ] {
        let mut review = kind.clone();
        review["spec"] = spec;
        let said = kubectl.fail(&format!("create -f {}", kubectl.file("bad", &review.to_string()))).await;
        assert!(said.contains(why), "{review}: {said}");
    }
    let mut review = kind;
    review["spec"] = json!({"user": "a", "resourceAttributes": {"verb": "get", "resource": "pods"}});
    let made =
        read(kubectl, &format!("create -o json -f {}", kubectl.file("good", &review.to_string()))).await;
    assert!(made["status"]["allowed"].is_boolean(), "{made}");
}

async fn bound_to_a_pod(kubectl: &Kubectl, bearer: &Bearer<'_>) {
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"owner"},
        "spec":{"serviceAccountName":"robot","containers":[{"name":"c","image":"example/c:1"}]}}"#;
    kubectl.run(&format!("create -f {}", kubectl.file("pod", pod))).await;
    // The account's token is in the pod without being asked for (upstream's ServiceAccount admission).
    let made = read(kubectl, "get pod owner -o json").await;
    let mount = &made["spec"]["containers"][0]["volumeMounts"][0];
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount", "{made}");
    assert_eq!((&mount["name"], &mount["readOnly"]), (&made["spec"]["volumes"][0]["name"], &json!(true)));
    let sources = &made["spec"]["volumes"][0]["projected"]["sources"];
    assert_eq!(sources[0]["serviceAccountToken"], json!({"expirationSeconds": 3607, "path": "token"}));
    let bound = token(kubectl, "--bound-object-kind=Pod --bound-object-name=owner").await;
    assert_eq!(bearer.who(&bound).await["extra"][POD], json!(["owner"]));
    let free = token(kubectl, "").await;
    assert_eq!(bearer.who(&free).await["extra"][POD], Value::Null);
    for (flags, why) in [
        ("--bound-object-kind=Pod --bound-object-name=none", "pods \"none\" not found"),
        (
            "--bound-object-kind=Pod --bound-object-name=owner --bound-object-uid=1",
            "the UID in the bound object reference (1) does not match the UID in record",
        ),
        (
            "--bound-object-kind=ConfigMap --bound-object-name=owner",
            "supported --bound-object-kind values are",
        ),
    ] {
        let said = kubectl.fail(&format!("create token robot {flags}")).await;
        assert!(said.contains(why), "{flags}: {said}");
    }
    kubectl.run("delete pod owner --force --grace-period=0").await;
    bearer.refused(&bound, "auth whoami", UNAUTHORIZED).await;
    assert_eq!(bearer.who(&free).await["username"], "system:serviceaccount:default:robot");
}
