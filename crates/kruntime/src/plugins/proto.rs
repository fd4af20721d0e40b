//! The messages by which a plug-in registers (`pluginregistration/v1`'s `api.proto`), by hand as those of the other protocols.

/// Asks a plug-in who it is.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct InfoRequest {}

/// Who a plug-in is.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PluginInfo {
    /// `CSIPlugin`, `DevicePlugin` or `DRAPlugin`.
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    /// The socket that it is to be spoken to at; empty for the one that it registers by.
    #[prost(string, tag = "3")]
    pub(crate) endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) supported_versions: Vec<String>,
}

/// What came of a registration.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    pub(crate) plugin_registered: bool,
    #[prost(string, tag = "2")]
    pub(crate) error: String,
}

/// The answer to it.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct RegistrationStatusResponse {}
