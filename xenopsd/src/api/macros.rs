//! The three declarations the contract is written in. Each defines a type together with its encoding, its
//! decoding and its description, so that none of the three can drift from the others.
//!
//! ```text
//! record! {
//!     /// A network interface of a VM.
//!     pub struct Vif as "Vif.t" {
//!         /// Which interface of which VM.
//!         id: DeviceId,                        // no default: must be there and decode
//!         /// Host side network.
//!         backend: Network = Network::default(), // default: stands in for absent or undecodable
//!         /// Only for VLAN-aware bridges.
//!         vlan: Option<i64>,                   // option: absent means none; present is the plain value
//!         /// PCI function.
//!         function as "fn": Int,               // the name on the wire where it cannot be the Rust name
//!     }
//! }
//!
//! variant! {
//!     /// Host side network.
//!     pub enum Network as "Network.t" {
//!         /// A bridge of the same domain.
//!         Local as "Local" (String),           // "Local", [payload]
//!         /// A switch in a driver domain.
//!         Remote as "Remote" {                 // several values: a tuple payload
//!             /// Its VM.
//!             vm: String,
//!             /// Its bridge.
//!             switch: String,
//!         },
//!         /// Nothing.
//!         None as "None",
//!     }
//!     otherwise None                           // optional: what an unknown tag decodes to
//! }
//!
//! methods! {
//!     debug_info as "debug_info", errors Error;
//!     /// Attach an interface.
//!     "VIF.plug" VifPlug -> TaskId {
//!         /// Which one.
//!         id: DeviceId,
//!     }
//! }
//! ```
//!
//! Records emit their fields in the reverse of the declared order and report the failing field declared last,
//! because the reference does; keys and tags are compared without regard to ASCII case, argument names exactly.
//! A record whose every field has a default implements `Default`. Extra derives go in `derive(Copy, Eq)`.

macro_rules! wire_name {
    ($name:ident) => {
        stringify!($name)
    };
    ($name:ident $wire:literal) => {
        $wire
    };
}

macro_rules! record {
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident as $wire:literal $(derive($($derive:ident),+))? {
            $($(#[doc = $fdoc:literal])+ $field:ident $(as $fwire:literal)? : $ty:ty = $default:expr),+ $(,)?
        }
    ) => {
        record!(@define
            $(#[doc = $doc])+
            pub struct $name as $wire $(derive($($derive),+))? {
                $($(#[doc = $fdoc])+ $field $(as $fwire)? : $ty = $default),+
            }
        );

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default),+ }
            }
        }
    };
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident as $wire:literal $(derive($($derive:ident),+))? {
            $($(#[doc = $fdoc:literal])+ $field:ident $(as $fwire:literal)? : $ty:ty $(= $default:expr)?),+ $(,)?
        }
    ) => {
        record!(@define
            $(#[doc = $doc])+
            pub struct $name as $wire $(derive($($derive),+))? {
                $($(#[doc = $fdoc])+ $field $(as $fwire)? : $ty $(= $default)?),+
            }
        );
    };
    (@define
        $(#[doc = $doc:literal])+
        pub struct $name:ident as $wire:literal $(derive($($derive:ident),+))? {
            $($(#[doc = $fdoc:literal])+ $field:ident $(as $fwire:literal)? : $ty:ty $(= $default:expr)?),+
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq $(, $($derive),+)?)]
        pub struct $name {
            $($(#[doc = $fdoc])+ pub $field: $ty,)+
        }

        impl $crate::api::value::WireType for $name {
            fn type_expr() -> String {
                $wire.to_owned()
            }
        }

        impl $crate::api::value::ToValue for $name {
            fn to_value(&self) -> $crate::api::value::Value {
                let mut members = Vec::new();
                $($crate::api::decode::push_member(
                    &mut members,
                    wire_name!($field $($fwire)?),
                    &self.$field,
                );)+
                members.reverse();
                $crate::api::value::Value::Dict(members)
            }
        }

        impl $crate::api::value::FromValue for $name {
            fn from_value(
                value: &$crate::api::value::Value,
            ) -> Result<Self, $crate::api::decode::DecodeError> {
                #[allow(unused_mut, reason = "a record of defaults never records a failure")]
                let mut fields = $crate::api::decode::Fields::of(value, $wire)?;
                $(let $field: Option<$ty> =
                    record!(@decode fields, wire_name!($field $($fwire)?) $(, $default)?);)+
                match ($($field,)+) {
                    ($(Some($field),)+) => Ok(Self { $($field),+ }),
                    _ => Err(fields.failure()),
                }
            }
        }

        impl $crate::api::schema::Described for $name {
            fn describe() -> $crate::api::schema::TypeDescription {
                $crate::api::schema::TypeDescription {
                    name: $wire,
                    rust: stringify!($name),
                    doc: concat!($($doc, "\n"),+),
                    shape: $crate::api::schema::Shape::Record(vec![$(
                        $crate::api::schema::FieldDescription {
                            name: wire_name!($field $($fwire)?),
                            ty: <$ty as $crate::api::value::WireType>::type_expr(),
                            doc: concat!($($fdoc, "\n"),+),
                            default: record!(@default $ty $(, $default)?),
                        },
                    )+]),
                }
            }
        }
    };
    (@decode $fields:ident, $key:expr) => {
        $fields.required($key)
    };
    (@decode $fields:ident, $key:expr, $default:expr) => {
        Some($fields.or_default($key, || $default))
    };
    (@default $ty:ty) => {
        None
    };
    (@default $ty:ty, $default:expr) => {{
        let default: $ty = $default;
        Some($crate::api::value::ToValue::to_value(&default))
    }};
}

macro_rules! variant {
    (
        $(#[doc = $doc:literal])+
        pub enum $name:ident as $wire:literal $(derive($($derive:ident),+))? {
            $(
                $(#[doc = $vdoc:literal])+
                $tag:ident as $twire:literal
                $(($one:ty))?
                $({ $($(#[doc = $mdoc:literal])+ $member:ident : $mty:ty),+ $(,)? })?
            ),+ $(,)?
        }
        $(otherwise $otherwise:ident)?
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq $(, $($derive),+)?)]
        pub enum $name {
            $(
                $(#[doc = $vdoc])+
                $tag $(($one))? $({ $($(#[doc = $mdoc])+ $member: $mty),+ })?,
            )+
        }

        impl $name {
            /// The variant's tag on the wire.
            #[must_use]
            pub const fn tag(&self) -> &'static str {
                match self {
                    $(Self::$tag { .. } => $twire,)+
                }
            }
        }

        impl $crate::api::value::WireType for $name {
            fn type_expr() -> String {
                $wire.to_owned()
            }
        }

        impl $crate::api::value::ToValue for $name {
            fn to_value(&self) -> $crate::api::value::Value {
                match self {
                    $(
                        Self::$tag $((variant!(@name payload $one)))? $({ $($member),+ })? => {
                            let contents = variant!(@encode
                                $((payload $one))? $(($($member: $mty),+))?);
                            $crate::api::decode::variant_value($twire, contents)
                        }
                    )+
                }
            }
        }

        impl $crate::api::value::FromValue for $name {
            fn from_value(
                value: &$crate::api::value::Value,
            ) -> Result<Self, $crate::api::decode::DecodeError> {
                let (tag, contents) = $crate::api::decode::variant_parts(value, $wire)?;
                $(
                    if tag.as_bytes().eq_ignore_ascii_case($twire.as_bytes()) {
                        return variant!(@decode contents, $tag,
                            $(($one))? $({ $($member: $mty),+ })?);
                    }
                )+
                variant!(@unknown tag, $wire $(, $otherwise)?)
            }
        }

        impl $crate::api::schema::Described for $name {
            fn describe() -> $crate::api::schema::TypeDescription {
                $crate::api::schema::TypeDescription {
                    name: $wire,
                    rust: stringify!($name),
                    doc: concat!($($doc, "\n"),+),
                    shape: $crate::api::schema::Shape::Variant {
                        tags: vec![$($crate::api::schema::TagDescription {
                            tag: $twire,
                            contents: variant!(@contents $(($one))? $(($($member: $mty),+))?),
                            members: vec![$($((
                                stringify!($member),
                                concat!($($mdoc, "\n"),+),
                            )),+)?],
                            doc: concat!($($vdoc, "\n"),+),
                        },)+],
                        otherwise: variant!(@otherwise $($otherwise)?),
                    },
                }
            }
        }
    };
    (@name $payload:ident $ty:ty) => {
        $payload
    };
    (@encode) => {
        $crate::api::value::Value::Null
    };
    (@encode ($payload:ident $ty:ty)) => {
        $crate::api::value::ToValue::to_value($payload)
    };
    (@encode ($($member:ident : $mty:ty),+)) => {
        $crate::api::value::Value::Array(vec![
            $(<$mty as $crate::api::value::ToValue>::to_value($member)),+
        ])
    };
    (@decode $contents:ident, $tag:ident,) => {
        <() as $crate::api::value::FromValue>::from_value($contents).map(|()| Self::$tag)
    };
    (@decode $contents:ident, $tag:ident, ($one:ty)) => {
        <$one as $crate::api::value::FromValue>::from_value($contents).map(Self::$tag)
    };
    (@decode $contents:ident, $tag:ident, { $($member:ident : $mty:ty),+ }) => {
        <($($mty,)+) as $crate::api::value::FromValue>::from_value($contents)
            .map(|($($member,)+)| Self::$tag { $($member),+ })
    };
    (@unknown $tag:ident, $wire:literal) => {
        Err($crate::api::decode::DecodeError::UnknownTag { tag: $tag.to_string(), variant: $wire })
    };
    (@unknown $tag:ident, $wire:literal, $otherwise:ident) => {
        Ok(Self::$otherwise)
    };
    (@otherwise) => {
        None
    };
    (@otherwise $otherwise:ident) => {
        Some(Self::$otherwise.tag())
    };
    (@contents) => {
        <() as $crate::api::value::WireType>::type_expr()
    };
    (@contents ($one:ty)) => {
        <$one as $crate::api::value::WireType>::type_expr()
    };
    (@contents ($($member:ident : $mty:ty),+)) => {
        <($($mty,)+) as $crate::api::value::WireType>::type_expr()
    };
}

macro_rules! methods {
    (
        debug_info as $dbg:literal, errors $errors:ty;
        $(
            $(#[doc = $doc:literal])+
            $wire:literal $name:ident -> $result:ty {
                $($(#[doc = $adoc:literal])+ $arg:ident : $ty:ty),* $(,)?
            }
        )+
    ) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug, Clone, PartialEq)]
            pub struct $name {
                /// Free text that names the caller's activity; it is repeated in logs and in the task.
                pub debug_info: String,
                $($(#[doc = $adoc])+ pub $arg: $ty,)*
            }

            impl $crate::api::call::Method for $name {
                const NAME: &'static str = $wire;
                type Result = $result;
                type Error = $errors;

                fn from_params(
                    params: &[$crate::api::value::Value],
                ) -> Result<Self, $crate::api::decode::DecodeError> {
                    let arguments = $crate::api::decode::Arguments::of(params)?;
                    Ok(Self {
                        debug_info: arguments.get($dbg)?,
                        $($arg: arguments.get(stringify!($arg))?,)*
                    })
                }

                fn to_params(&self) -> $crate::api::value::Value {
                    let mut members = Vec::new();
                    $crate::api::decode::push_member(&mut members, $dbg, &self.debug_info);
                    $($crate::api::decode::push_member(&mut members, stringify!($arg), &self.$arg);)*
                    members.reverse();
                    $crate::api::value::Value::Dict(members)
                }

                fn debug_info(&self) -> &str {
                    &self.debug_info
                }

                fn describe() -> $crate::api::schema::MethodDescription {
                    $crate::api::schema::MethodDescription {
                        name: $wire,
                        doc: concat!($($doc, "\n"),+),
                        debug_info: $dbg,
                        arguments: vec![$($crate::api::schema::ArgumentDescription {
                            name: stringify!($arg),
                            ty: <$ty as $crate::api::value::WireType>::type_expr(),
                            optional: <$ty as $crate::api::value::FromValue>::absent().is_some(),
                            doc: concat!($($adoc, "\n"),+),
                        },)*],
                        result: <$result as $crate::api::value::WireType>::type_expr(),
                        error: <$errors as $crate::api::value::WireType>::type_expr(),
                    }
                }
            }
        )+
    };
}
