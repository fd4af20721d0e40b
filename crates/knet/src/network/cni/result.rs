//! What plug-ins answer.

use std::net::IpAddr;

use serde_json::Value;

use super::execute::PluginError;

/// The pod's addresses in a result of any version, in its order. Those of a device that isn't the pod's are left out.
///
/// ```
/// let result = serde_json::json!({"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/16"}]});
/// assert_eq!(knet::network::cni::addresses(&result), ["10.1.0.5".parse::<std::net::IpAddr>().unwrap()]);
/// ```
#[must_use]
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let read = |text: &Value| -> Option<IpAddr> { text.as_str()?.split('/').next()?.parse().ok() };
    let in_pod = |ip: &&Value| {
        let device = ip["interface"].as_u64().and_then(|index| usize::try_from(index).ok());
        // Without a sandbox it is a device of the host.
        device.is_none_or(|index| {
            !result["interfaces"][index]["sandbox"].as_str().unwrap_or_default().is_empty()
        })
    };
    let listed = result["ips"].as_array().into_iter().flatten().filter(in_pod).map(|ip| &ip["address"]);
    // Versions 0.1.0 and 0.2.0 had one of each family.
    listed.chain([&result["ip4"]["ip"], &result["ip6"]["ip"]]).filter_map(read).collect()
}

/// The result, if it is one.
pub(super) fn checked(output: Value, version: &str) -> Result<Value, PluginError> {
    if !output.is_object() {
        return Err(PluginError::Unreadable("a result is an object".to_owned()));
    }
    let mut output = output;
    // A plug-in that doesn't say it has answered in the version that it was asked in.
    if output["cniVersion"].as_str().is_none_or(str::is_empty) {
        output["cniVersion"] = version.into();
    }
    Ok(output)
}
