//! A naive allocation: all ways of choosing alternatives and devices in turn, each looked at as a whole. It reads the JSON
//! that the case is made of. Covers what random cases have: one pool a driver, all on the node.

use serde_json::Value;

use super::World;

/// A device with its driver and pool.
type Device<'a> = (&'a str, &'a str, &'a Value);
/// What was chosen: the claim, the request, the alternative, the device.
type Choice<'a> = (usize, &'a Value, &'a Value, Device<'a>);

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn gib(value: &Value) -> i64 {
    value
        .as_str()
        .and_then(|text| text.strip_suffix("Gi"))
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

/// The first way that is right, worded as `show` does for devices alone.
pub(crate) fn allocate(world: &World) -> String {
    let devices: Vec<Device<'_>> = world
        .slices
        .iter()
        .flat_map(|slice| {
            let spec = &slice["spec"];
            let names = (spec["driver"].as_str().unwrap(), spec["pool"]["name"].as_str().unwrap());
            list(&spec["devices"]).map(move |device| (names.0, names.1, device))
        })
        .collect();
    let mut requests = Vec::new();
    for (number, claim) in world.claims.iter().enumerate() {
        requests.extend(list(&claim["spec"]["devices"]["requests"]).map(|request| (number, request)));
    }
    let mut chosen = Vec::new();
    if !search(world, &devices, &requests, &mut chosen) {
        return "none".to_owned();
    }
    let mut claims = vec![Vec::new(); world.claims.len()];
    for (claim, request, sub, (driver, pool, device)) in chosen {
        let mut name = request["name"].as_str().unwrap().to_owned();
        if request.get("firstAvailable").is_some() {
            name = format!("{name}/{}", sub["name"].as_str().unwrap());
        }
        claims[claim].push(format!("{name}={driver}/{pool}/{}", device["name"].as_str().unwrap()));
    }
    claims.iter().map(|claim| claim.join("; ")).collect::<Vec<_>>().join(" | ")
}

fn search<'a>(
    world: &'a World,
    devices: &[Device<'a>],
    requests: &[(usize, &'a Value)],
    chosen: &mut Vec<Choice<'a>>,
) -> bool {
    let Some(((claim, request), rest)) = requests.split_first() else {
        return is_right(world, devices, chosen);
    };
    let alternatives: Vec<&Value> = match request.get("exactly") {
        Some(exactly) => vec![exactly],
        None => list(&request["firstAvailable"]).collect(),
    };
    alternatives.into_iter().any(|wanted| {
        let fitting: Vec<_> = devices.iter().copied().filter(|device| fits(wanted, *device)).collect();
        let count = match wanted["allocationMode"].as_str() {
            Some("All") if fitting.is_empty() => return false,
            Some("All") => fitting.len(),
            _ => usize::try_from(wanted["count"].as_i64().unwrap_or(1)).unwrap(),
        };
        subsets(&fitting, count).into_iter().any(|subset| {
            let before = chosen.len();
            chosen.extend(subset.into_iter().map(|device| (*claim, *request, wanted, device)));
            let found = search(world, devices, rest, chosen);
            if !found {
                chosen.truncate(before);
            }
            found
        })
    })
}

/// In the order of the devices.
fn subsets<'a>(devices: &[Device<'a>], count: usize) -> Vec<Vec<Device<'a>>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        for mut rest in subsets(&devices[index + 1..], count - 1) {
            rest.insert(0, *device);
            all.push(rest);
        }
    }
    all
}

/// The class, the selector and capacity; classes are named after their drivers, selectors ask for the attribute `kind`.
fn fits(wanted: &Value, (driver, _, device): Device<'_>) -> bool {
    let selector = wanted["selectors"][0]["cel"]["expression"].as_str();
    wanted["deviceClassName"] == *driver
        && selector
            .is_none_or(|text| text.ends_with(&format!("== {}", device["attributes"]["x/kind"]["int"])))
        && wanted["capacity"]["requests"].get("memory").is_none_or(|asked| {
            device["capacity"].get("memory").is_some_and(|has| gib(asked) <= gib(&has["value"]))
        })
}

fn is_right(world: &World, devices: &[Device<'_>], chosen: &[Choice<'_>]) -> bool {
    let taken = |of: &Device<'_>| {
        let mut results = world.allocated.iter();
        results.any(|result| result["driver"] == *of.0 && result["device"] == of.2["name"])
    };
    let same = |a: &Device<'_>, b: &Device<'_>| a.0 == b.0 && a.2["name"] == b.2["name"];
    for (index, (claim, _, wanted, device)) in chosen.iter().enumerate() {
        let admin = wanted["adminAccess"] == true;
        let tainted = list(&device.2["taints"]).any(|_| list(&wanted["tolerations"]).next().is_none());
        let shared = device.2["allowMultipleAllocations"] == true;
        if tainted || !admin && taken(device) {
            return false;
        }
        let before = &chosen[..index];
        let clash = |(other_claim, _, _, other): &Choice<'_>| {
            same(device, other) && !shared && (!admin || claim == other_claim)
        };
        if before.iter().any(clash) {
            return false;
        }
    }
    capacities_hold(devices, chosen)
        && counters_hold(world, devices, chosen)
        && constraints_hold(world, chosen)
}

fn capacities_hold(devices: &[Device<'_>], chosen: &[Choice<'_>]) -> bool {
    devices.iter().filter(|device| device.2["allowMultipleAllocations"] == true).all(|device| {
        let Some(has) = device.2["capacity"].get("memory") else { return true };
        let of_device = chosen
            .iter()
            .filter(|(_, _, _, other)| other.0 == device.0 && other.2["name"] == device.2["name"]);
        let asked = of_device.map(|(_, _, wanted, _)| {
            wanted["capacity"]["requests"].get("memory").map_or_else(|| gib(&has["value"]), gib)
        });
        asked.sum::<i64>() <= gib(&has["value"])
    })
}

fn counters_hold(world: &World, devices: &[Device<'_>], chosen: &[Choice<'_>]) -> bool {
    world.slices.iter().filter(|slice| slice["spec"].get("sharedCounters").is_some()).all(|slice| {
        let driver = slice["spec"]["driver"].as_str().unwrap();
        let has = gib(&slice["spec"]["sharedCounters"][0]["counters"]["memory"]["value"]);
        let takes = |device: &Value| gib(&device["consumesCounters"][0]["counters"]["memory"]["value"]);
        let before: i64 = devices
            .iter()
            .filter(|device| {
                device.0 == driver
                    && world
                        .allocated
                        .iter()
                        .any(|result| result["driver"] == driver && result["device"] == device.2["name"])
            })
            .map(|device| takes(device.2))
            .sum();
        let ours: Vec<_> = chosen.iter().filter(|(_, _, _, device)| device.0 == driver).collect();
        let needs = ours.iter().any(|(_, _, _, device)| device.2.get("consumesCounters").is_some());
        let mut seen: Vec<&Value> = Vec::new();
        let mut total = before;
        for (_, _, _, device) in ours {
            // The first share of a device pays for all.
            if device.2["allowMultipleAllocations"] == true && seen.contains(&&device.2["name"]) {
                continue;
            }
            seen.push(&device.2["name"]);
            total += takes(device.2);
        }
        !needs || total <= has
    })
}

fn constraints_hold(world: &World, chosen: &[Choice<'_>]) -> bool {
    world.claims.iter().enumerate().all(|(number, claim)| {
        list(&claim["spec"]["devices"]["constraints"]).all(|constraint| {
            let about = |request: &Value| {
                list(&constraint["requests"]).next().is_none()
                    || list(&constraint["requests"]).any(|name| *name == request["name"])
            };
            let values: Vec<&Value> = chosen
                .iter()
                .filter(|(claim, request, _, _)| *claim == number && about(request))
                .map(|(_, _, _, device)| &device.2["attributes"]["x/kind"])
                .collect();
            let all_have = values.iter().all(|value| !value.is_null());
            let ok = if constraint.get("matchAttribute").is_some() {
                values.windows(2).all(|pair| pair[0] == pair[1])
            } else {
                values.iter().enumerate().all(|(index, value)| !values[..index].contains(value))
            };
            all_have && ok
        })
    })
}
