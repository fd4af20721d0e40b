//! kubectl with an identity of an OpenID Connect provider. The provider is another cluster: what it publishes of its service
//! accounts (KEP-1393) is what a provider publishes, and its tokens are what an identity has to show. kubectl gets them by a
//! credential plug-in (KEP-541).

use std::net::{SocketAddr, TcpListener};

use kapi::authn::{AuthenticationConfig, ServiceAccountIssuer};
use kplane::Cluster;
use serde_json::json;

use crate::support::{Kubectl, kubectls};

/// How often another port is tried when somebody else took the last one.
const PORTS_MAX: usize = 5;

/// A cluster that names the place where it is served as the issuer of its tokens.
async fn provider(program: std::path::PathBuf) -> (Kubectl, String) {
    for _ in 0..PORTS_MAX {
        let address: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("https://{address}");
        let issuer = ServiceAccountIssuer::generate().unwrap().issuer(&url);
        let builder = Cluster::builder().nodes(0).api(move |api| api.service_accounts(issuer));
        let cluster = builder.start().await.unwrap();
        if let Some(kubectl) = Kubectl::at(cluster, program.clone(), address).await {
            return (kubectl, url);
        }
    }
    panic!("no port stays free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_of_another_provider_is_known() {
    for program in kubectls() {
        let (provider, url) = provider(program.clone()).await;
        // A provider tells everybody who it is.
        let open = "create clusterrolebinding open --clusterrole=system:service-account-issuer-discovery";
        provider.run(&format!("{open} --group=system:unauthenticated")).await;
        provider.run("create serviceaccount jane").await;

        let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [{
            "issuer": {"url": url, "audiences": ["cluster"], "certificateAuthority": provider.cluster.ca_pem()},
            "claimMappings": {
                "username": {"claim": "sub", "prefix": "oidc:"},
                "groups": {"expression": "['oidc:' + claims['kubernetes.io'].namespace]"},
            },
            "claimValidationRules": [{
                "expression": "claims['kubernetes.io'].serviceaccount.name != 'mallory'", "message": "not she",
            }],
        }]});
        let config = AuthenticationConfig::parse(&config.to_string()).unwrap();
        let cluster =
            Cluster::builder().nodes(0).api(move |api| api.authentication(config)).start().await.unwrap();
        let kubectl = Kubectl::of(cluster, program).await;
        kubectl.run("create rolebinding look --clusterrole=view --group=oidc:default").await;

        let identity = async |who: &str, audience: &str| {
            let asks = provider.command(&["create", "token", who, "--audience", audience]);
            let words: Vec<_> = asks.get_args().map(|word| word.to_str().unwrap()).collect();
            let script = format!(
                "#!/bin/sh\ntoken=$(KUBECONFIG={} {} {}) || exit 1\nprintf '{{\"apiVersion\":\"client.authentication.k8s.io/v1\",\"kind\":\"ExecCredential\",\"status\":{{\"token\":\"%s\"}}}}' \"$token\"\n",
                provider.path("config"),
                asks.get_program().to_str().unwrap(),
                words.join(" "),
            );
            let plugin = kubectl.script(&format!("credentials-{who}-{audience}"), &script);
            let mut file: serde_json::Value =
                serde_json::from_str(&kubectl.run("config view --raw -o json").await).unwrap();
            file["users"][0]["user"] = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1",
                "command": plugin, "interactiveMode": "Never"}});
            kubectl.file(&format!("config-{who}-{audience}"), &file.to_string())
        };
        let jane = identity("jane", "cluster").await;
        let who = kubectl.run(&format!("--kubeconfig={jane} auth whoami")).await;
        let name = "oidc:system:serviceaccount:default:jane";
        assert!(who.contains(name) && who.contains("oidc:default"), "{who}");
        kubectl.run(&format!("--kubeconfig={jane} get configmaps")).await;
        let said = kubectl.fail(&format!("--kubeconfig={jane} create configmap x")).await;
        assert!(said.contains(&format!("User \"{name}\" cannot create resource \"configmaps\"")), "{said}");

        // For somebody else, and of somebody who is not let in.
        provider.run("create serviceaccount mallory").await;
        for (who, audience) in [("jane", "other"), ("mallory", "cluster")] {
            let config = identity(who, audience).await;
            let said = kubectl.fail(&format!("--kubeconfig={config} get configmaps")).await;
            assert!(said.contains("Unauthorized") || said.contains("must be logged in"), "{said}");
        }
    }
}
