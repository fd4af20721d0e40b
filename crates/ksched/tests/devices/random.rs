//! Random cases, and the naive reference's answers.

use serde_json::{Value, json};

use super::{World, reference, show};

const SEEDS: u64 = 4000;

/// SplitMix64: the same numbers for the same seed everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % bound
    }

    fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }

    fn device(&mut self, number: u64, counters: bool) -> Value {
        let mut device = json!({"name": format!("x{number}")});
        if !self.one_in(5) {
            device["attributes"] = json!({"x/kind": {"int": self.below(3)}});
        }
        if self.one_in(3) {
            device["capacity"] = json!({"memory": {"value": format!("{}Gi", 2 + self.below(6))}});
            if self.one_in(2) {
                device["allowMultipleAllocations"] = json!(true);
            }
        }
        if self.one_in(5) {
            device["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
        }
        if counters && self.one_in(2) {
            let takes = json!({"memory": {"value": format!("{}Gi", 1 + self.below(4))}});
            device["consumesCounters"] = json!([{"counterSet": "set", "counters": takes}]);
        }
        device
    }

    fn slices(&mut self, driver: &str) -> Vec<Value> {
        let counters = self.one_in(2);
        let devices: Vec<_> = (0..self.below(5)).map(|number| self.device(number, counters)).collect();
        let slice = |name: &str, count: u64| {
            json!({
                "metadata": {"name": format!("{driver}-{name}")},
                "spec": {
                    "driver": driver, "nodeName": "n1",
                    "pool": {"name": "p", "generation": 1, "resourceSliceCount": count}
                }
            })
        };
        let mut slices = vec![slice("devices", 1 + u64::from(counters))];
        slices[0]["spec"]["devices"] = devices.into();
        if counters {
            let has = json!({"memory": {"value": format!("{}Gi", 2 + self.below(6))}});
            let mut sets = slice("sets", 2);
            sets["spec"]["sharedCounters"] = json!([{"name": "set", "counters": has}]);
            slices.push(sets);
        }
        slices
    }

    fn wanted(&mut self) -> Value {
        let mut wanted = json!({"deviceClassName": if self.one_in(3) { "e" } else { "d" }});
        match self.below(6) {
            0 => wanted["allocationMode"] = json!("All"),
            1 | 2 => wanted["count"] = json!(2),
            _ => {}
        }
        if self.one_in(4) {
            let attribute = "device.attributes['x']";
            let expression = format!("'kind' in {attribute} && {attribute}.kind == {}", self.below(3));
            wanted["selectors"] = json!([{"cel": {"expression": expression}}]);
        }
        if self.one_in(2) {
            wanted["tolerations"] = json!([{"operator": "Exists"}]);
        }
        if self.one_in(4) {
            wanted["capacity"] = json!({"requests": {"memory": format!("{}Gi", 1 + self.below(5))}});
        }
        wanted
    }

    fn request(&mut self, name: &str) -> Value {
        if self.one_in(4) {
            let subs = (0..=self.below(2)).map(|number| {
                let mut sub = self.wanted();
                sub["name"] = json!(format!("s{number}"));
                sub
            });
            return json!({"name": name, "firstAvailable": subs.collect::<Vec<_>>()});
        }
        let mut exactly = self.wanted();
        if self.one_in(6) {
            exactly["adminAccess"] = json!(true);
        }
        json!({"name": name, "exactly": exactly})
    }

    fn claim(&mut self, number: u64) -> Value {
        let names = ["r", "s", "t"];
        let count = 1 + self.below(3);
        let requests: Vec<_> = names.iter().take(count as usize).map(|name| self.request(name)).collect();
        let mut devices = json!({"requests": requests});
        if self.one_in(3) {
            let kind = if self.one_in(2) { "matchAttribute" } else { "distinctAttribute" };
            let mut constraint = json!({ kind: "x/kind" });
            if self.one_in(2) {
                constraint["requests"] = json!(["r"]);
            }
            devices["constraints"] = json!([constraint]);
        }
        json!({"metadata": {"namespace": "default", "name": format!("c{number}")}, "spec": {"devices": devices}})
    }

    fn world(&mut self) -> World {
        let class = |driver: &str| {
            let selectors = json!([{"cel": {"expression": format!("device.driver == '{driver}'")}}]);
            json!({"metadata": {"name": driver}, "spec": {"selectors": selectors}})
        };
        let mut slices = self.slices("d");
        slices.extend(self.slices("e"));
        let mut allocated = Vec::new();
        for slice in &slices {
            for device in slice["spec"]["devices"].as_array().into_iter().flatten() {
                if self.one_in(6) {
                    let (driver, device) = (&slice["spec"]["driver"], &device["name"]);
                    allocated.push(json!({"request": "r", "driver": driver, "pool": "p", "device": device}));
                }
            }
        }
        let claims = (0..=self.below(2)).map(|number| self.claim(number)).collect();
        World { classes: vec![class("d"), class("e")], slices, claims, allocated }
    }
}

/// What `show` says of the devices alone.
fn devices_only(shown: &str) -> String {
    let claims = shown.split(" | ").map(|claim| {
        let words = claim.split("; ").filter(|word| !word.starts_with('@'));
        let words = words.map(|word| word.split(' ').next().unwrap_or_default());
        words.collect::<Vec<_>>().join("; ")
    });
    claims.collect::<Vec<_>>().join(" | ")
}

#[test]
fn the_search_finds_what_looking_at_everything_finds() {
    let (mut found, mut none) = (0, 0);
    for seed in 0..SEEDS {
        let world = Random(seed).world();
        let shown = show(world.allocate("n1"));
        let expected = reference::allocate(&world);
        // Where "all" can't keep a constraint there is an error, as nobody can want that: nothing is found either way.
        if shown.contains("because a claim constraint would not be satisfied") {
            continue;
        }
        assert!(!shown.starts_with("error"), "seed {seed}: {shown}");
        assert_eq!(devices_only(&shown), expected, "seed {seed}: {world:#?}");
        if expected == "none" {
            none += 1;
        } else {
            found += 1;
        }
    }
    assert!(found > SEEDS / 10 && none > SEEDS / 10, "{found} found, {none} not");
}
