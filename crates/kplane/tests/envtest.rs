//! The programs of `KUBEBUILDER_ASSETS`, started the way controller-runtime's envtest starts them.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::json;

/// A program; it is ended when this is dropped.
struct Program(Child);

impl Program {
    /// Starts a program; the address that it says it serves on.
    fn start(assets: &Path, name: &str, arguments: &[String]) -> (Self, String) {
        let mut command = Command::new(assets.join(name));
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix("serving on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
        (Self(child), address)
    }

    /// Ends it as envtest does, with SIGTERM.
    fn end(mut self) -> ExitStatus {
        let ended = Command::new("kill").arg(self.0.id().to_string()).status().unwrap();
        assert!(ended.success());
        self.0.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the suite makes: an authority for client certificates and an administrator.
struct Pki {
    authority: String,
    user: (String, String),
}

fn pki() -> Pki {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "envtest-environment");
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "admin");
    params.distinguished_name.push(DnType::OrganizationName, "system:masters");
    let user = params.signed_by(&key, &issuer).unwrap().pem();
    Pki { authority, user: (user, key.serialize_pem()) }
}

async fn client(address: &str, authority: &str, user: Option<&(String, String)>) -> Client {
    let user = user.map(|(certificate, key)| {
        json!({"client-certificate-data": STANDARD.encode(certificate), "client-key-data": STANDARD.encode(key)})
    });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("https://{address}"), "certificate-authority-data": STANDARD.encode(authority)}}],
        "users": [{"name": "u", "user": user.unwrap_or_else(|| json!({}))}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    let config = Kubeconfig::from_yaml(&config.to_string()).unwrap();
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn get(path: &str) -> http::Request<Vec<u8>> {
    http::Request::get(path).body(Vec::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suite_finds_what_it_starts() {
    let folder = tempfile::tempdir().unwrap();
    let assets = folder.path().join("assets");
    let made = Command::new(env!("CARGO_BIN_EXE_kplane")).arg("assets").arg(&assets).output().unwrap();
    assert!(made.status.success() && String::from_utf8_lossy(&made.stdout).contains("KUBEBUILDER_ASSETS="));
    for name in ["etcd", "kube-apiserver"] {
        let help = Command::new(assets.join(name)).arg("--help").output().unwrap();
        assert!(help.status.success() && !help.stdout.is_empty(), "{name}");
    }

    let data = format!("--data-dir={}", folder.path().join("etcd").display());
    let arguments = [
        "--listen-peer-urls=http://127.0.0.1:0",
        "--listen-client-urls=http://127.0.0.1:0",
        "--unsafe-no-fsync=true",
        "--advertise-client-urls=http://127.0.0.1:0",
        &data,
    ];
    let (etcd, etcd_address) = Program::start(&assets, "etcd", &arguments.map(str::to_owned));
    let health = Command::new("curl")
        .args(["-sS", "--noproxy", "*", &format!("http://{etcd_address}/health")])
        .output()
        .unwrap();
    assert_eq!(health.stdout, br#"{"health":"true","reason":""}"#);

    let pki = pki();
    let (certificates, authority) = (folder.path().join("certs"), folder.path().join("client-ca.crt"));
    std::fs::write(&authority, &pki.authority).unwrap();
    let signing = folder.path().join("sa-signer.key");
    std::fs::write(&signing, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let arguments = [
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
        "--allow-privileged=true".to_owned(),
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        "--secure-port=0".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--unheard-of=yes".to_owned(),
        format!("--cert-dir={}", certificates.display()),
        format!("--client-ca-file={}", authority.display()),
        format!("--etcd-servers=http://{etcd_address}"),
        "--service-account-issuer=https://127.0.0.1/".to_owned(),
        format!("--service-account-signing-key-file={}", signing.display()),
        format!("--service-account-key-file={}", signing.display()),
    ];
    let (server, address) = Program::start(&assets, "kube-apiserver", &arguments);
    let root = std::fs::read_to_string(certificates.join("apiserver.crt")).unwrap();
    let anonymous = client(&address, &root, None).await;
    assert_eq!(anonymous.request_text(get("/healthz")).await.unwrap(), "ok");
    assert!(anonymous.request_text(get("/api/v1/pods")).await.is_err());

    let admin = client(&address, &root, Some(&pki.user)).await;
    assert!(Api::<Namespace>::all(admin.clone()).get_opt("default").await.unwrap().is_some());
    let issuer = admin.request_text(get("/.well-known/openid-configuration")).await.unwrap();
    assert!(issuer.contains(r#""issuer":"https://127.0.0.1/""#), "{issuer}");
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
    // No service account was made, which a suite without controllers relies on.
    Api::<ConfigMap>::default_namespaced(admin).create(&PostParams::default(), &map).await.unwrap();

    assert!(server.end().success() && etcd.end().success());
}
