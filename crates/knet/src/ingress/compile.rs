//! From Ingresses to a table of routes: a pure function.
//!
//! The rules are those of the documentation of Ingress ("Path types", "Hostname wildcards", "TLS", "Default backend") and of the fields
//! of `networking.k8s.io/v1`.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressClass, IngressRule, IngressSpec,
};

use super::{CLASS_ANNOTATION, CONTROLLER, HTTP_PORT, HTTPS_PORT};
use crate::{
    backends::{BackendError, Objects, PortRef, service_backend},
    http_proxy::{
        Action, Backend, BackendProtocol, HostName, Hosts, Match, PathMatch, PortRoutes, RouteTable, Rule,
    },
};

/// Something that an Ingress asks for and does not get.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The Ingress's namespace.
    pub namespace: String,
    /// The Ingress's name.
    pub name: String,
    /// One word in CamelCase, for an event.
    pub reason: &'static str,
    /// What it is.
    pub message: String,
}

/// What becomes of Ingresses.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// What the proxy does at [`HTTP_PORT`] and [`HTTPS_PORT`].
    pub table: RouteTable,
    /// The Ingresses that are served, by namespace and name.
    pub served: BTreeSet<(String, String)>,
    /// What could not be done.
    pub problems: BTreeSet<Problem>,
}

/// The class that an Ingress names.
fn class(ingress: &Ingress) -> Option<&str> {
    let field = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    let annotations = ingress.metadata.annotations.as_ref();
    field.or_else(|| annotations?.get(CLASS_ANNOTATION).map(String::as_str))
}

/// The table for the Ingresses whose class is of this controller.
///
/// Ingresses without a class are nobody's. New ones get the class that is marked as default, by admission.
#[must_use]
pub fn compile(ingresses: &[Arc<Ingress>], classes: &[Arc<IngressClass>], objects: &dyn Objects) -> Compiled {
    let is_own = |class: &&Arc<IngressClass>| {
        class.spec.as_ref().and_then(|spec| spec.controller.as_deref()) == Some(CONTROLLER)
    };
    let own = classes.iter().filter(is_own).filter_map(|class| class.metadata.name.as_deref());
    let own: BTreeSet<&str> = own.collect();
    let mut ingresses: Vec<&Ingress> = ingresses.iter().map(AsRef::as_ref).collect();
    ingresses.retain(|ingress| class(ingress).is_some_and(|class| own.contains(class)));
    ingresses.sort_by(|a, b| age(a).cmp(&age(b)));
    let mut compiler = Compiler {
        objects,
        routes: PortRoutes::default(),
        certificates: Hosts::default(),
        compiled: Compiled::default(),
    };
    for ingress in &ingresses {
        compiler.add(ingress);
        compiler.add_defaults(ingress);
    }
    let Compiler { routes, certificates, mut compiled, .. } = compiler;
    let tls = PortRoutes { tls: Some(certificates), ..routes.clone() };
    compiled.table.ports = [(HTTP_PORT, routes), (HTTPS_PORT, tls)].into();
    compiled
}

/// The order in which Ingresses are taken when they ask for the same.
fn age(ingress: &Ingress) -> impl Ord + use<'_> {
    let meta = &ingress.metadata;
    (meta.creation_timestamp.as_ref().map(|time| time.0), meta.namespace.as_deref(), meta.name.as_deref())
}

struct Compiler<'a> {
    objects: &'a dyn Objects,
    routes: PortRoutes,
    certificates: Hosts<crate::http_proxy::Certificate>,
    compiled: Compiled,
}

/// An Ingress with its names at hand.
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
    spec: &'a IngressSpec,
}

impl<'a> Named<'a> {
    fn of(ingress: &'a Ingress) -> Option<Self> {
        let meta = &ingress.metadata;
        Some(Self {
            namespace: meta.namespace.as_deref()?,
            name: meta.name.as_deref()?,
            spec: ingress.spec.as_ref()?,
        })
    }

    fn rules(&self) -> impl Iterator<Item = (usize, &'a IngressRule)> {
        self.spec.rules.iter().flatten().enumerate()
    }
}

fn host(rule: &IngressRule) -> HostName {
    HostName::ingress(rule.host.as_deref().unwrap_or_default())
}

impl Compiler<'_> {
    fn problem(&mut self, ingress: &Named<'_>, reason: &'static str, message: impl Into<String>) {
        self.compiled.problems.insert(Problem {
            namespace: ingress.namespace.to_owned(),
            name: ingress.name.to_owned(),
            reason,
            message: message.into(),
        });
    }

    fn add(&mut self, ingress: &Ingress) {
        let Some(ingress) = Named::of(ingress) else { return };
        self.compiled.served.insert((ingress.namespace.to_owned(), ingress.name.to_owned()));
        for (number, rule) in ingress.rules() {
            let paths = rule.http.iter().flat_map(|http| &http.paths);
            for (at, path) in paths.enumerate() {
                self.add_path(&ingress, (number, at), rule, path);
            }
        }
        for tls in ingress.spec.tls.iter().flatten() {
            // Without a Secret it is the proxy's own certificate.
            let Some(secret) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) else { continue };
            let certificate = match self.objects.certificate(ingress.namespace, secret) {
                Ok(certificate) => certificate,
                Err(error) => {
                    self.problem(&ingress, "InvalidCertificate", error.to_string());
                    continue;
                }
            };
            let hosts = tls.hosts.as_deref().unwrap_or_default();
            let hosts = if hosts.is_empty() {
                vec![HostName::Any]
            } else {
                hosts.iter().map(|host| HostName::ingress(host)).collect()
            };
            for host in hosts {
                if self.certificates.get(&host).is_none() {
                    self.certificates.insert(host, certificate.clone());
                }
            }
        }
    }

    fn add_path(
        &mut self,
        ingress: &Named<'_>,
        (number, at): (usize, usize),
        rule: &IngressRule,
        path: &HTTPIngressPath,
    ) {
        let text = path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        let matched = match path.path_type.as_str() {
            "Exact" => PathMatch::Exact(text.into()),
            "Prefix" | "ImplementationSpecific" => PathMatch::Prefix(text.into()),
            other => {
                self.problem(ingress, "InvalidPathType", format!("the path type {other:?} is not known"));
                return;
            }
        };
        let backend = self.backend(ingress, &path.backend);
        let name = format!("{}/{}/{number}/{at}", ingress.namespace, ingress.name);
        let route = Rule::new(name, Match::path(matched), Action::Forward(vec![backend]));
        self.routes.add(HostName::Any, host(rule), Arc::new(route));
    }

    /// The default backend: for the hosts that the Ingress names, and for all.
    fn add_defaults(&mut self, ingress: &Ingress) {
        let Some(ingress) = Named::of(ingress) else { return };
        let Some(backend) = &ingress.spec.default_backend else { return };
        let backend = self.backend(&ingress, backend);
        let name = format!("{}/{}/default", ingress.namespace, ingress.name);
        let all = Match::path(PathMatch::Prefix("/".into()));
        let route = Arc::new(Rule::new(name, all, Action::Forward(vec![backend])));
        let hosts: BTreeSet<_> = ingress.rules().map(|(_, rule)| host(rule)).chain([HostName::Any]).collect();
        for host in hosts {
            if self.routes.fallback.get(&host).is_none() {
                self.routes.fallback.insert(host, Arc::clone(&route));
            }
        }
    }

    fn backend(&mut self, ingress: &Named<'_>, backend: &IngressBackend) -> Backend {
        let made = |name: String, protocol, endpoints| Backend {
            name: name.into(),
            weight: 1,
            protocol,
            tls: None,
            endpoints,
            filters: Vec::new(),
        };
        let Some(service) = &backend.service else {
            let message = match &backend.resource {
                Some(other) => format!("a backend of the kind {:?} is not supported", other.kind),
                None => "a backend names no service".to_owned(),
            };
            self.problem(ingress, "UnsupportedBackend", message);
            return made(String::new(), BackendProtocol::default(), None);
        };
        let port = service.port.as_ref();
        let named = port.and_then(|port| port.name.as_deref()).filter(|name| !name.is_empty());
        let port = match (named, port.and_then(|port| port.number)) {
            (Some(name), _) => PortRef::Name(name),
            (None, number) => PortRef::Number(number.unwrap_or_default()),
        };
        let shown = match port {
            PortRef::Name(name) => format!("{}/{}:{name}", ingress.namespace, service.name),
            PortRef::Number(number) => format!("{}/{}:{number}", ingress.namespace, service.name),
        };
        match service_backend(self.objects, ingress.namespace, &service.name, port) {
            Ok(found) => made(shown, found.protocol, Some(found.endpoints)),
            Err(error) => {
                self.problem(ingress, "InvalidBackend", error.to_string());
                let there = !matches!(error, BackendError::Protocol { .. });
                made(shown, BackendProtocol::default(), there.then(|| Arc::from([])))
            }
        }
    }
}

#[cfg(test)]
mod tests;
