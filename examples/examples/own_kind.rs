//! A kind of your own, from a Rust type: its schema is the type's, its rules are CEL and Rust, and kubectl can't tell it from
//! any other.

use std::sync::Arc;

use anyhow::{Result, ensure};
use kapi::{error::FieldError, registry::ResourceDef, strategy::Strategy};
use kplane::Cluster;
use kube::{
    Api, CustomResource, KubeSchema,
    api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(CustomResource, Clone, Debug, Default, Deserialize, Serialize, KubeSchema)]
#[kube(group = "example.com", version = "v1", kind = "Shirt", namespaced, status = "ShirtStatus")]
#[x_kube(validation = Rule::new("self.size > 0").message("a shirt has a size"))]
struct ShirtSpec {
    color: String,
    #[serde(default = "medium")]
    size: u32,
}

fn medium() -> u32 {
    40
}

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
struct ShirtStatus {
    worn: bool,
}

/// What neither the schema nor a rule in it says.
#[derive(Debug)]
struct Fashion;

impl Strategy for Fashion {
    fn validate(&self, shirt: &Value, errors: &mut Vec<FieldError>) {
        if shirt["spec"]["color"] == "green" {
            errors.push(FieldError::invalid_text("spec.color", "green", "is out of fashion"));
        }
    }
}

fn shirt(name: &str, color: &str, size: u32) -> Shirt {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
    Shirt { metadata, spec: ShirtSpec { color: color.to_owned(), size }, status: None }
}

#[tokio::main]
async fn main() -> Result<()> {
    let shirts = ResourceDef::of::<Shirt>()
        .strategy(Arc::new(Fashion))
        .status()
        .short_names(["sh"])
        .selectable(["spec.color"])
        .column("Color", "string", ".spec.color")?
        .build()?;
    let cluster = Cluster::builder().nodes(0).api(move |api| api.kind(shirts)).start().await?;
    let api: Api<Shirt> = Api::default_namespaced(cluster.client());

    let made = api.create(&PostParams::default(), &shirt("a", "blue", 38)).await?;
    println!("created {:?}", made.spec);
    for (bad, why) in
        [(shirt("b", "green", 38), "out of fashion"), (shirt("c", "red", 0), "a shirt has a size")]
    {
        let error = api.create(&PostParams::default(), &bad).await.err().map(|error| error.to_string());
        println!("refused: {}", error.as_deref().unwrap_or_default());
        ensure!(error.is_some_and(|error| error.contains(why)));
    }

    // Defaults, ownership and an index by colour come with it.
    let red = json!({"apiVersion": "example.com/v1", "kind": "Shirt", "metadata": {"name": "d"},
        "spec": {"color": "red"}});
    let applied = api.patch("d", &PatchParams::apply("me"), &Patch::Apply(&red)).await?;
    ensure!(applied.spec.size == 40);
    let found = api.list(&ListParams::default().fields("spec.color=red")).await?;
    ensure!(found.items.len() == 1);
    let worn = json!({"status": {"worn": true}});
    let worn = api.patch_status("d", &PatchParams::default(), &Patch::Merge(&worn)).await?;
    println!("worn: {:?}", worn.status);
    ensure!(worn.status.is_some_and(|status| status.worn));

    cluster.shutdown().await?;
    Ok(())
}
