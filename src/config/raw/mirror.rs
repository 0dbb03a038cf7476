//! The macro that makes a table of the file: its struct, its keys, its reader.

/// Declares mirror structs. `key as "type"` reads a key of another name.
macro_rules! mirror {
    ($($(#[$meta:meta])* $Name:ident {
        $($(#[$fmeta:meta])* $field:ident $(as $key:literal)? : $Ty:ty,)*
    })*) => {$(
        #[derive(Debug, Clone, Default, schemars::JsonSchema)]
        #[schemars(deny_unknown_fields)]
        $(#[$meta])*
        pub(crate) struct $Name {
            $($(#[$fmeta])* $(#[schemars(rename = $key)])?
            pub(crate) $field: Option<crate::config::reader::At<$Ty>>,)*
        }

        impl $Name {
            /// The keys of the table.
            pub(crate) const KEYS: &'static [&'static str] =
                &[$(mirror!(@key $field $($key)?)),*];
        }

        impl crate::config::reader::FromNode for $Name {
            fn read(
                node: &crate::config::reader::Node<'_>,
                r: &mut crate::config::reader::Reader<'_>,
            ) -> Option<Self> {
                let mut out = Self::default();
                for entry in node.table(r)? {
                    match entry.key {
                        $(mirror!(@key $field $($key)?) => out.$field = r.field(node, &entry),)*
                        _ => r.unknown(node, &entry, Self::KEYS),
                    }
                }
                Some(out)
            }
        }
    )*};
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
}
pub(crate) use mirror;
