//! The server through `kube::Client` and through bare requests, without a socket.

mod access;
mod accounts;
mod aggregate;
mod apply;
mod asked;
mod audit;
mod bad_input;
mod content;
mod custom;
mod encryption;
mod harness;
mod kms;
mod loopback;
mod metrics_api;
mod oidc;
mod openapi;
mod policies;
mod proxy;
mod quotas;
mod streams;
mod tables;
mod tokens;
mod verbs;
mod versions;
mod watches;
mod webhooks;
