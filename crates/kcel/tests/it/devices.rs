//! Selectors of devices. Expected results and costs: `dynamic-resource-allocation/cel/compile_test.go`; sizes: its
//! `compile.go` and the constants of `resource.k8s.io/v1`.

use kcel::{Bindings, DeviceEnv, Env, Feature, Value};

fn texts(count: usize) -> Value<'static> {
    Value::from((0..count).map(|index| Value::from(format!("value-{index}"))).collect::<Vec<_>>())
}

fn bound<'a>() -> Value<'a> {
    let nothing = || Value::map([]);
    let attributes = Value::map([
        ("flag", Value::from(true)),
        ("count", Value::from(1)),
        ("text", Value::from("fish")),
        ("version", Value::semver("1.0.0").unwrap()),
        ("texts", Value::from(vec![Value::from("fish"), Value::from("bird")])),
        ("full", texts(48)),
        ("long", texts(49)),
    ]);
    let capacity = Value::map([("memory", Value::quantity("1Mi".parse().unwrap()))]);
    Value::map([
        ("driver", Value::from("dra.example.com")),
        ("allowMultipleAllocations", Value::from(true)),
        ("attributes", Value::map_with_default([("dra.example.com", attributes)], nothing())),
        ("capacity", Value::map_with_default([("dra.example.com", capacity)], nothing())),
    ])
}

#[test]
fn selectors_are_evaluated_and_estimated() {
    let env = Env::builder()
        .variable("device", DeviceEnv::decl())
        .with(Feature::Bindings)
        .with(Feature::Includes)
        .build();
    for (text, expected, estimate) in [
        (r#"device.attributes["no-such-domain"].x.isGreaterThan(quantity("0"))"#, "no such key: x", 6),
        (r#"device.attributes["no-such-domain"]["x"].isGreaterThan(quantity("0"))"#, "no such key: x", 6),
        (r#""no-such-domain" in device.attributes"#, "false", 3),
        (r#""dra.example.com" in device.attributes"#, "true", 3),
        (r#"device.driver == "dra.example.com""#, "true", 4),
        (r#"device.attributes["dra.example.com"].flag"#, "true", 4),
        (r#"device.attributes["dra.example.com"]["flag"]"#, "true", 4),
        (r#"cel.bind(dra, device.attributes["dra.example.com"], dra.flag)"#, "true", 15),
        (r#"device.attributes["dra.example.com"].count > 0"#, "true", 5),
        (r#"device.attributes["dra.example.com"].text == "fish""#, "true", 5),
        (
            r#"device.attributes["dra.example.com"].count.exists(x, x > 0)"#,
            "got 'types.Int', expected iterable type",
            5 + 6 * 64,
        ),
        (r#"device.attributes["dra.example.com"].texts.size() == 2"#, "true", 6),
        (r#"device.attributes["dra.example.com"].texts.all(x, x != "")"#, "true", 5 + 4 * 64),
        (r#"device.attributes["dra.example.com"].flag.includes(true)"#, "true", 4 + 48),
        (r#"device.attributes["dra.example.com"].texts.includes("fish")"#, "true", 4 + 48),
        (r#"device.attributes["dra.example.com"].texts.includes("cat")"#, "false", 4 + 48),
        (r#"device.attributes["dra.example.com"].version.includes(semver("1.0.0"))"#, "true", 4 + 48 + 1),
        (r#"device.attributes["dra.example.com"].full.includes("value-48")"#, "false", 4 + 48),
        (
            r#"device.attributes["dra.example.com"].long.includes("value-49")"#,
            "'includes' function cannot be applied to lists longer than 48 values",
            4 + 48,
        ),
        (r#"device.attributes["dra.example.com"].version.isLessThan(semver("2.0.0"))"#, "true", 6),
        (r#"device.capacity["dra.example.com"].memory.isGreaterThan(quantity("1Ki"))"#, "true", 6),
        ("device.allowMultipleAllocations == true", "true", 3),
        (r#"device.attributes.exists_one(x, x == "dra.example.com")"#, "true", 164),
        (r#"device.attributes["dra.example.com"].exists_one(x, x == "services")"#, "false", 133),
        (r#"device.attributes["dra.example.com"].text.split("example").size() >= 2"#, "false", 19),
        (r#"device.attributes["dra.example.com"].text.matches("[^a]?sym")"#, "false", 18),
        (r#"device.capacity["dra.example.com"].exists_one(x, x == "memory")"#, "true", 133),
    ] {
        let bindings = Bindings::new().with("device", bound());
        assert_eq!(super::language::answer(&env, text, &bindings), expected, "{text}");
        assert_eq!(env.compile(text).unwrap().estimate().max, estimate, "{text}");
    }
}
