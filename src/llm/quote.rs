//! Text into a JSON string, RFC 8259 §7.
//!
//! The one idea: most text needs no escape, so whole clean runs are appended at once and
//! only the byte that must change is looked at. What must: the quote, the backslash and
//! U+0000..U+001F. Everything else stays as the UTF-8 it is; nothing is escaped that JSON
//! would carry plainly (`/`, DEL, non-ASCII), so that a name keeps its bytes.

/// Appends `text` to `out` as a JSON string with its quotes.
pub fn quote(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    quote_inner(text, out);
    out.push(b'"');
}

/// Appends `text` to `out` escaped for the inside of a JSON string, without quotes.
pub fn quote_inner(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut from = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[from..at]);
        from = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
    }
    out.extend_from_slice(&bytes[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::scan::ModelScan;
    use proptest::prelude::*;

    fn quoted(text: &str) -> String {
        let mut out = Vec::new();
        quote(text, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes_what_must_be_and_nothing_else() {
        assert_eq!(quoted("a/é\u{7f}😀"), "\"a/é\u{7f}😀\"");
        assert_eq!(quoted("\"\\\n\r\t\u{8}\u{c}\u{1}\u{1f}"), r#""\"\\\n\r\t\b\f\u0001\u001f""#);
        assert_eq!(quoted(""), "\"\"");
    }

    proptest! {
        #[test]
        fn a_parser_reads_back_what_was_written(text in any::<String>()) {
            prop_assert_eq!(serde_json::from_str::<String>(&quoted(&text)).unwrap(), text);
        }

        #[test]
        fn a_new_name_for_the_old_one_is_what_a_server_reads(old in any::<String>(), new in "[^\0]{0,60}", rest in any::<String>()) {
            prop_assume!(old.len() <= 256 && new.len() <= 256);
            let rest = serde_json::Value::from(rest);
            let body = format!(r#"{{"a":{rest},"model":{},"b":[{rest}]}}"#, serde_json::Value::from(old));
            let mut scan = ModelScan::new();
            scan.push(body.as_bytes()).and_then(|()| scan.finish()).unwrap();
            let span = scan.model().unwrap().span;
            let (before, after) = (&body[..span.start as usize], &body[span.end as usize..]);
            let got: serde_json::Value =
                serde_json::from_str(&[before, &quoted(&new), after].concat()).unwrap();
            prop_assert_eq!(&got["model"], &serde_json::Value::from(new));
            prop_assert_eq!(&got["a"], &rest);
            prop_assert_eq!(&got["b"][0], &rest);
        }
    }
}
