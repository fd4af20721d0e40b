//! kubectl and who may do what: `auth can-i`, `auth reconcile`, and working as somebody who may only some things.

use kplane::Cluster;

use crate::support::{Kubectl, kubectls};

const ROLES: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
- {verbs: [get, list], apiGroups: [''], resources: [pods]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: readers, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: jane}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_given_listed_and_kept_to() {
    for program in kubectls() {
        let cluster = Cluster::builder().nodes(0).start().await.unwrap();
        let kubectl = &Kubectl::of(cluster, program).await;
        let file = kubectl.file("roles.yaml", ROLES);
        let made = kubectl.run(&format!("auth reconcile -f {file}")).await;
        assert!(made.contains("clusterrole.rbac.authorization.k8s.io/reader reconciled"), "{made}");
        // Once more with a rule and a subject further: what is there stays.
        let more = kubectl.file("more.yaml", &ROLES.replace("[get, list]", "[watch]").replace("jane", "joe"));
        kubectl.run(&format!("auth reconcile -f {more}")).await;
        for user in ["jane", "joe"] {
            for verb in ["get", "list", "watch"] {
                assert_eq!(kubectl.run(&format!("auth can-i {verb} pods --as {user}")).await.trim(), "yes");
            }
            kubectl.fail(&format!("auth can-i delete pods --as {user}")).await;
            kubectl.fail(&format!("auth can-i list pods -A --as {user}")).await;
        }
        let listed = kubectl.run("auth can-i --list --as jane").await;
        assert!(
            listed.lines().any(|line| line.starts_with("pods ") && line.contains("[get list")),
            "{listed}"
        );
        assert!(listed.contains("selfsubjectaccessreviews.authorization.k8s.io"), "{listed}");
        kubectl.run("get pods --as jane").await;
        let refused = kubectl.fail("create configmap x --as jane").await;
        let expected = "configmaps is forbidden: User \"jane\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\"";
        assert!(refused.contains(expected), "{refused}");
        let refused = kubectl
            .fail("create clusterrolebinding mine --clusterrole=cluster-admin --user=jane --as jane")
            .await;
        assert!(refused.contains("cannot create resource \"clusterrolebindings\""), "{refused}");
    }
}
