//! The flags of `kube-apiserver` that name configuration files: who is believed, who may do what, what is told of it, and what is
//! stored encrypted.

use std::{path::PathBuf, sync::Arc, time::Duration};

use kapi::{
    ApiServerBuilder,
    audit::{AuditLog, AuditPolicy, AuditSink, AuditWebhook, BatchConfig, LogConfig},
    authn::{AuthenticationConfig, TokenWebhook},
    authz::{AccessWebhook, AuthorizationConfig},
    config::ConfigError,
    encrypt::Encryption,
    outbound::Remote,
};

use super::{FaceError, Flags, read};

/// The flags that `--help` lists, and what they do here.
pub(super) const FLAGS: &[(&str, &str)] = &[
    ("audit-log-maxage", "How many days old audit logs are kept. Default 366."),
    ("audit-log-maxbackup", "How many old audit logs are kept. Default 100."),
    ("audit-log-maxsize", "How large an audit log grows, in MiB. Default 100."),
    (
        "audit-log-mode",
        "blocking, or blocking-strict: a request that can't be written down is refused. Default blocking.",
    ),
    ("audit-log-path", "The file to which requests are told; `-` is standard output."),
    ("audit-policy-file", "Which requests are told of, and how much."),
    ("audit-webhook-config-file", "The kubeconfig of a service that is told of requests."),
    ("authentication-config", "Whose tokens are believed, and where callers may stay unknown."),
    (
        "authentication-token-webhook-config-file",
        "The kubeconfig of a service that is asked whose a token is.",
    ),
    ("authorization-config", "How it is decided who may do what, instead of --authorization-mode."),
    (
        "authorization-webhook-config-file",
        "The kubeconfig of a service that is asked who may do what, for the mode Webhook.",
    ),
    ("encryption-provider-config", "Which objects are stored encrypted, and how."),
    (
        "encryption-provider-config-automatic-reload",
        "Whether that file is read again when it changes. Default false.",
    ),
];

/// What goes beside the server until it ends.
#[derive(Default)]
pub(super) struct Beside {
    /// The encryption that follows its file.
    pub(super) follow: Option<(Encryption, PathBuf)>,
}

/// Takes up the files that the flags name.
pub(super) fn apply(
    flags: &Flags,
    mut builder: ApiServerBuilder,
) -> Result<(ApiServerBuilder, Beside), FaceError> {
    let mut beside = Beside::default();
    if let Some(config) = parsed(flags, "authentication-config", AuthenticationConfig::parse)? {
        if flags.get("anonymous-auth").is_some() && config.sets_anonymous() {
            return Err(FaceError::Flag {
                flag: "anonymous-auth",
                value: flags.get("anonymous-auth").unwrap_or_default().to_owned(),
                wanted: "of use beside the field anonymous of --authentication-config",
            });
        }
        builder = builder.authentication(config);
    }
    if let Some(remote) = remote(flags, "authentication-token-webhook-config-file")? {
        builder = builder.authenticator(Arc::new(TokenWebhook::new(remote)));
    }
    if let Some(config) = parsed(flags, "authorization-config", AuthorizationConfig::parse)? {
        let both = ["authorization-mode", "authorization-webhook-config-file"];
        if let Some(flag) = both.into_iter().find(|flag| flags.get(flag).is_some()) {
            let value = flags.get(flag).unwrap_or_default().to_owned();
            return Err(FaceError::Flag { flag, value, wanted: "of use beside --authorization-config" });
        }
        builder = builder.authorization_config(config);
    } else if flags.list("authorization-mode").any(|mode| mode == "Webhook")
        && let Some(remote) = remote(flags, "authorization-webhook-config-file")?
    {
        builder = builder.authorizer(Arc::new(AccessWebhook::new(remote)));
    }
    if let Some(encryption) = parsed(flags, "encryption-provider-config", Encryption::parse)? {
        let reloads = flags.read("encryption-provider-config-automatic-reload", "true or false")?;
        if reloads.unwrap_or(false)
            && let Some(path) = flags.get("encryption-provider-config")
        {
            beside.follow = Some((encryption.clone(), PathBuf::from(path)));
        }
        builder = builder.encryption(encryption);
    }
    Ok((audit(flags, builder)?, beside))
}

/// Upstream tells nobody anything without a policy, and has nobody to tell it to without a sink.
fn audit(flags: &Flags, builder: ApiServerBuilder) -> Result<ApiServerBuilder, FaceError> {
    let Some(policy) = parsed(flags, "audit-policy-file", AuditPolicy::parse)? else {
        return Ok(builder);
    };
    let mut sinks: Vec<Arc<dyn AuditSink>> = Vec::new();
    if let Some(path) = flags.get("audit-log-path") {
        let mut config = LogConfig::new(if path == "-" { "/dev/stdout" } else { path });
        if let Some(mebibytes) = flags.read::<u64>("audit-log-maxsize", "a number of MiB")? {
            config.bytes_max = mebibytes.saturating_mul(1024 * 1024);
        }
        config.age_days_max =
            flags.read("audit-log-maxage", "a number of days")?.unwrap_or(config.age_days_max);
        config.strict = match flags.get("audit-log-mode") {
            None | Some("blocking") => false,
            Some("blocking-strict") => true,
            Some(other) => {
                let wanted = "blocking or blocking-strict";
                return Err(FaceError::Flag { flag: "audit-log-mode", value: other.to_owned(), wanted });
            }
        };
        config.backups_max = flags.read("audit-log-maxbackup", "a number")?.unwrap_or(config.backups_max);
        let log = AuditLog::open(config);
        sinks.push(Arc::new(log.map_err(|source| FaceError::File { path: path.to_owned(), source })?));
    }
    if let Some(remote) = remote(flags, "audit-webhook-config-file")? {
        sinks.push(Arc::new(AuditWebhook::start(remote, BatchConfig::default())));
    }
    Ok(if sinks.is_empty() { builder } else { builder.audit(policy, Arc::new(sinks)) })
}

fn parsed<T>(
    flags: &Flags,
    flag: &'static str,
    parse: impl FnOnce(&str) -> Result<T, ConfigError>,
) -> Result<Option<T>, FaceError> {
    let Some(path) = flags.get(flag) else {
        return Ok(None);
    };
    parse(&read(path)?).map(Some).map_err(|source| FaceError::Config { flag, source })
}

fn remote(flags: &Flags, flag: &'static str) -> Result<Option<Remote>, FaceError> {
    let remote = flags.get(flag).map(|path| Remote::from_file(path.as_ref())).transpose();
    remote.map_err(|source| FaceError::Config { flag, source })
}

/// How often the files of the serving certificate are looked at (upstream's `FileRefreshDuration`).
pub(super) const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_wrong_is_named_by_its_flag() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let kind =
            |kind: &str, rest: &str| format!("apiVersion: apiserver.config.k8s.io/v1\nkind: {kind}\n{rest}");
        let good = file(
            "good",
            &kind(
                "EncryptionConfiguration",
                "resources: [{resources: [secrets], providers: [{identity: {}}]}]",
            ),
        );
        let rbac =
            file("rbac", &kind("AuthorizationConfiguration", "authorizers: [{type: RBAC, name: rbac}]"));
        let policy =
            file("policy", "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata}]}");
        let log = folder.path().join("audit.log").display().to_string();
        let nobody = file("nobody", &kind("AuthenticationConfiguration", "anonymous: {enabled: false}"));
        for (arguments, fault) in [
            (vec![format!("--encryption-provider-config={good}")], ""),
            (vec![format!("--encryption-provider-config={rbac}")], "--encryption-provider-config: kind: "),
            (vec![format!("--authorization-config={rbac}")], ""),
            (vec![format!("--authorization-config={good}")], "--authorization-config: kind: "),
            (
                vec![format!("--authorization-config={rbac}"), "--authorization-mode=RBAC".to_owned()],
                "--authorization-mode: \"RBAC\" is not",
            ),
            (vec![format!("--authentication-config={nobody}")], ""),
            (
                vec![format!("--authentication-config={nobody}"), "--anonymous-auth=true".to_owned()],
                "--anonymous-auth: \"true\" is not",
            ),
            (vec!["--audit-policy-file=/nowhere".to_owned()], "/nowhere"),
            (vec![format!("--audit-policy-file={policy}"), format!("--audit-log-path={log}")], ""),
            (
                vec![
                    format!("--audit-policy-file={policy}"),
                    "--audit-webhook-config-file=/nowhere".to_owned(),
                ],
                "--audit-webhook-config-file: /nowhere",
            ),
        ] {
            let outcome = apply(&Flags::parse(arguments.clone()), kapi::ApiServer::builder());
            let found = outcome.err().map(|why| why.to_string()).unwrap_or_default();
            assert!(
                found.starts_with(fault) && found.is_empty() == fault.is_empty(),
                "{arguments:?}: {found}"
            );
        }
        assert!(std::fs::exists(&log).unwrap());
        let reloads = [
            "--encryption-provider-config-automatic-reload".to_owned(),
            format!("--encryption-provider-config={good}"),
        ];
        let (_, beside) = apply(&Flags::parse(reloads), kapi::ApiServer::builder()).unwrap();
        assert!(beside.follow.is_some());
    }
}
