use super::{MAX_DEPTH, Problem, parse_value, print_value};
use crate::api::value::{Text, Value};
use crate::rpc::json;
use proptest::prelude::*;

fn json_of(xml: &str) -> String {
    json::print_lossy(&parse_value(xml.as_bytes()).expect(xml))
}

#[test]
fn takes_what_the_reference_takes() {
    for (xml, expected) in [
        ("<value/>", r#""""#),
        ("<value></value>", r#""""#),
        ("<value>  a b </value>", r#""  a b ""#),
        ("<value><string/></value>", r#""""#),
        ("<value>\n <string> a</string>\n</value>", r#"" a""#),
        ("<value><int>-5</int></value>", "-5"),
        ("<value><i4>5</i4></value>", "5"),
        ("<value><i8>9223372036854775807</i8></value>", "9223372036854775807"),
        ("<value><double>1e3</double></value>", "1000.0"),
        ("<value><boolean>1</boolean></value>", "true"),
        ("<value><boolean>true</boolean></value>", "false"),
        ("<value><nil/></value>", "null"),
        ("<value><nil></nil></value>", "null"),
        ("<value xmlns:ex='u'><ex:nil/></value>", "null"),
        ("<value><ex:nil xmlns:ex='u'/></value>", "null"),
        ("<value><array/></value>", "[]"),
        ("<value><array><data/></array></value>", "[]"),
        ("<value><struct/></value>", "{}"),
        ("<value>&lt;&amp;&gt;&quot;&apos;&#65;&#x42;</value>", r#""<&>\"'AB""#),
        ("<value>a<![CDATA[<b>&amp;]]>c</value>", r#""a<b>&amp;c""#),
        ("<value>a<!-- no -->b</value>", r#""ab""#),
        ("<value>a\r\nb</value>", r#""a\nb""#),
        ("\u{feff}<?xml version='1.0'?><!DOCTYPE value [<!ENTITY a 'b'>]><value>x</value>", r#""x""#),
        (
            "<value><struct><member><name>a&amp;b</name><value>1</value></member></struct></value>",
            r#"{"a&b":"1"}"#,
        ),
    ] {
        assert_eq!(json_of(xml), expected, "{xml}");
    }
}

#[test]
fn latin_1_is_read_if_declared() {
    let body = b"<?xml version=\"1.0\" encoding=\"iso-8859-1\"?><value>caf\xe9</value>";
    assert_eq!(parse_value(body), Ok(Value::string("café")));
    assert!(parse_value(b"<value>caf\xe9</value>").is_err());
    assert!(parse_value(b"<?xml version='1.0' encoding='EBCDIC'?><value/>").is_err());
}

#[test]
fn refuses_what_the_reference_refuses() {
    for xml in [
        "",
        "hello",
        "<value>",
        "<value></valu>",
        "<VALUE/>",
        "<value><int> 5 </int></value>",
        "<value><int/></value>",
        "<value><boolean/></value>",
        "<value><ex:nil/></value>",
        "<value><what>5</what></value>",
        "<value><INT>5</INT></value>",
        "<value>5<int>5</int></value>",
        "<value><int>5</int>5</value>",
        "<value><int>5</int><int>5</int></value>",
        "<value>&bogus;</value>",
        "<value>&#0;</value>",
        "<value>\u{1}</value>",
        "<value>\u{ffff}</value>",
        "<value>&</value>",
        "<value><array><value/></array></value>",
        "<value><struct><name>a</name></struct></value>",
        "<value><struct><member><value/><name>a</name></member></struct></value>",
        "<value><base64>YWJj</base64></value>",
        "<value><nil>x</nil></value>",
        "<!DOCTYPE v [<!ENTITY a 'b'>]><value>&a;</value>",
        "x<value/>",
        "<value>a<value/></value>",
    ] {
        assert!(parse_value(xml.as_bytes()).is_err(), "{xml}");
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| {
        let open = "<value><array><data>".repeat(depth);
        format!("{open}<value/>{}", "</data></array></value>".repeat(depth))
    };
    assert!(parse_value(nested(MAX_DEPTH).as_bytes()).is_ok());
    let error = parse_value(nested(100_000).as_bytes()).expect_err("too deep");
    assert_eq!(error.problem, Problem::Depth);
}

#[test]
fn control_characters_are_dropped() {
    assert_eq!(print_value(&Value::string("a\0b\u{1}\t'\u{7f}")), b"<value>ab\t'\x7f</value>");
}

/// What is left of a value after a trip through XML: integers are strings.
fn through_xml(value: &Value) -> Value {
    match value {
        Value::Int(number) => Value::string(number.to_string()),
        Value::Array(items) => Value::Array(items.iter().map(through_xml).collect()),
        Value::Dict(members) => {
            Value::Dict(members.iter().map(|(key, item)| (key.clone(), through_xml(item))).collect())
        }
        other => other.clone(),
    }
}

fn xml_value() -> impl Strategy<Value = Value> {
    let text = "[^\\x00-\\x1f\\u{fffe}\\u{ffff}]{0,12}";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        any::<i32>().prop_map(|n| Value::Float(f64::from(n) / 8.0)),
        text.prop_map(Value::string),
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::vec((text.prop_map(Text::from), inner), 0..5).prop_map(Value::Dict),
        ]
    })
}

proptest! {
    #[test]
    fn round_trips(value in xml_value()) {
        prop_assert_eq!(parse_value(&print_value(&value)), Ok(through_xml(&value)));
    }

    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_value(&bytes);
    }

    #[test]
    fn never_panics_on_almost_xml(
        parts in prop::collection::vec(prop::sample::select(vec![
            "<value>", "</value>", "<array>", "<data>", "</data>", "</array>", "<struct>", "<member>", "<name>",
            "</name>", "</member>", "</struct>", "<nil/>", "<int>", "</int>", "5", " ", "&amp;", "&", "<![CDATA[",
            "]]>", "<!--", "-->", "<?xml version='1.0'?>", "<!DOCTYPE a>", "<a:b", ">", "/>", "x='y'",
        ]), 0..30)
    ) {
        let _ = parse_value(parts.concat().as_bytes());
    }
}
