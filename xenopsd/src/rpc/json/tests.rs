use super::{MAX_DEPTH, Problem, parse, print};
use crate::api::value::{Text, Value};
use proptest::prelude::*;

/// Any value, not a NaN (which is not equal to itself), at most `depth` deep.
pub(crate) fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_filter("NaN", |number| !number.is_nan()).prop_map(Value::Float),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Value::String(Text::from(bytes))),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..8).prop_map(Text::from), inner),
                0..5
            )
            .prop_map(Value::Dict),
        ]
    })
}

fn round(text: &str) -> String {
    String::from_utf8(print(&parse(text.as_bytes()).expect(text))).expect("UTF-8")
}

#[test]
fn takes_what_the_reference_takes() {
    for (text, canonical) in [
        (" [ 1 , 2 ] \n", "[1,2]"),
        ("{a:1,\"b\":2,_c3:3}", r#"{"a":1,"b":2,"_c3":3}"#),
        ("// one\n[1/* two */,2]// three", "[1,2]"),
        ("/**/1", "1"),
        ("[NaN,Infinity,-Infinity]", "[NaN,Infinity,-Infinity]"),
        ("\"raw\tcontrol\n\"", "\"raw\\tcontrol\\n\""),
        (r#""\u00e9\ud834\udd1e\/\u0000\u007f""#, "\"é𝄞/\\u0000\\u007f\""),
        (r#"{"k":1,"k":2}"#, r#"{"k":1,"k":2}"#),
        ("-0", "0"),
        ("9223372036854775807", "9223372036854775807"),
        ("1.5e3", "1500.0"),
        ("1E2", "100.0"),
        ("0.30000000000000004", "0.30000000000000004"),
        ("5e-324", "4.940656458412465e-324"),
    ] {
        assert_eq!(round(text), canonical, "{text}");
    }
}

#[test]
fn refuses_what_the_reference_refuses() {
    for text in [
        "",
        " ",
        "[1,]",
        "{\"a\":1,}",
        "01",
        "1.",
        ".5",
        "+1",
        "1e",
        "--1",
        "\u{feff}1",
        "1 2",
        "1x",
        "[1",
        "{",
        "{1:2}",
        "'a'",
        "\"a",
        r#""\x""#,
        r#""\ud800""#,
        r#""\ud800\u0041""#,
        r#""\u12g4""#,
        "/* ",
        "tru",
        "nul",
        "9223372036854775808",
        "-9223372036854775809",
        "<\"a\">",
        "(1,2)",
        "[,]",
        "{,}",
        "{a}",
        "hello",
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
    let error = parse(nested(1_000_000).as_bytes()).expect_err("too deep");
    assert_eq!(error.problem, Problem::Depth);
    assert_eq!(error.to_string(), "JSON: nested deeper than 128 levels at byte 129");
}

#[test]
fn count_is_bounded() {
    let many = format!("[{}0]", "0,".repeat(super::MAX_VALUES));
    assert_eq!(parse(many.as_bytes()).expect_err("too many").problem, Problem::Count);
}

proptest! {
    #[test]
    fn round_trips(value in any_value()) {
        prop_assert_eq!(parse(&print(&value)), Ok(value));
    }

    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn never_panics_on_almost_json(text in "[\\[\\]{}\",:0-9eE.+\\-/*\\\\ u\\ntrfals]{0,60}") {
        let _ = parse(text.as_bytes());
    }
}
