//! The answers that are our own: errors, and the list of models.
//!
//! The one idea: one error, several coats. A fault is told once as status, kind, message and
//! hint; the path of the request says which SDK is listening, and that SDK finds the error
//! in the shape it parses: OpenAI's `{"error":{…}}`, Anthropic's `{"type":"error",…}`,
//! Gemini's `{"error":{"code","message","status"}}`. All of it is compact JSON, keys in a
//! fixed order, every string escaped.
//!
//! It deliberately writes bodies only; status line, `Content-Length`, `x-request-id`,
//! `Retry-After` and the rest of the head belong to the trunk.

use super::quote::{quote, quote_inner};

/// The shape of errors that the caller's SDK parses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `{"error":{"message","type","param","code","hint","request_id"}}`, also the default.
    OpenAi,
    /// `{"type":"error","error":{"type","message"},"request_id"}`.
    Anthropic,
    /// `{"error":{"code","message","status"}}`.
    Gemini,
    /// OpenAI's, of its Responses API: a stream's error is an event of its own kind.
    Responses,
}

impl Dialect {
    /// Tells who is calling by the path of the request, without its query.
    ///
    /// Shape: `…/v1/messages` and below is Anthropic; `…/v1beta/…` and `…/models/{m}:verb`
    /// are Gemini, but for Gemini's own `/v1beta/openai/…`; `…/responses` and below is OpenAI's
    /// Responses; all else is OpenAI.
    pub fn of_path(path: &[u8]) -> Self {
        let (mut beta, mut openai, mut models) = (false, false, false);
        // A path is short: one walk over its bytes costs less than preparing a search.
        for (at, _) in path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            let rest = &path[at..];
            match rest.get(1) {
                Some(b'v') if begins(rest, b"/v1/messages") => return Dialect::Anthropic,
                Some(b'v') if begins(rest, b"/v1beta") => {
                    beta = true;
                    openai |= begins(rest, b"/v1beta/openai");
                }
                Some(b'm') => models |= rest.starts_with(b"/models/"),
                Some(b'r') if begins(rest, b"/responses") && !models && (openai || !beta) => {
                    return Dialect::Responses;
                }
                _ => {}
            }
        }
        let has_verb = || path.iter().rev().take_while(|&&b| b != b'/').any(|&b| b == b':');
        if (beta && !openai) || (models && has_verb()) {
            return Dialect::Gemini;
        }
        Dialect::OpenAi
    }
}

/// One error of ours, before it has a shape.
#[derive(Clone, Copy, Debug)]
pub struct ErrorReply<'a> {
    /// The HTTP status that goes with it; in Gemini's shape also the `code` inside the body.
    pub status: u16,
    /// OpenAI's `code`, such as `model_not_found`.
    pub code: &'a str,
    /// OpenAI's `type`, such as `invalid_request_error`. The other dialects have closed
    /// lists of names and take theirs from `status`.
    pub kind: &'a str,
    /// What happened, for a person to read.
    pub message: &'a str,
    /// What to do about it. Dialects without such a field find it behind the message.
    pub hint: Option<&'a str>,
    /// The exchange's id, the same as in `x-request-id`.
    pub request_id: &'a str,
    /// Seconds until another try makes sense, if one ever does. Gemini's clients look for it in
    /// the body, the others in the head.
    pub retry_after_s: Option<u32>,
}

impl ErrorReply<'_> {
    /// Appends the body in `dialect` to `out`: one compact JSON object, no line end.
    pub fn write_body(&self, dialect: Dialect, out: &mut Vec<u8>) {
        match dialect {
            Dialect::OpenAi | Dialect::Responses => self.write_openai(out),
            Dialect::Anthropic => self.write_anthropic(out),
            Dialect::Gemini => self.write_gemini(out),
        }
    }

    /// Appends the error as one server-sent event, for a stream whose server died midway.
    ///
    /// Shape: starts at a line start and ends with a blank line. When the stream broke off
    /// inside a line the caller first sends a blank line of its own.
    pub fn write_sse_event(&self, dialect: Dialect, out: &mut Vec<u8>) {
        match dialect {
            Dialect::OpenAi | Dialect::Gemini => out.extend_from_slice(b"data: "),
            Dialect::Anthropic => out.extend_from_slice(b"event: error\ndata: "),
            Dialect::Responses => {
                out.extend_from_slice(b"event: error\ndata: ");
                self.write_responses_event(out);
                out.extend_from_slice(b"\n\n");
                return;
            }
        }
        self.write_body(dialect, out);
        out.extend_from_slice(b"\n\n");
    }

    /// The data of an `error` event of the Responses API. OpenAI documents the fields beside
    /// `type` and also sends them in an `error` object; SDKs look at either.
    fn write_responses_event(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"error\",\"code\":");
        quote(self.code, out);
        out.extend_from_slice(b",\"message\":");
        self.write_message_with_hint(out);
        // The server's numbers are not counted on the way; a client that wants one gets one.
        out.extend_from_slice(b",\"param\":null,\"sequence_number\":0,");
        let from = out.len();
        self.write_openai(out);
        // `{"error":{…}}` without its first brace goes on the object begun above.
        out.remove(from);
    }

    fn write_openai(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"error\":{\"message\":");
        quote(self.message, out);
        out.extend_from_slice(b",\"type\":");
        quote(self.kind, out);
        out.extend_from_slice(b",\"param\":null,\"code\":");
        quote(self.code, out);
        if let Some(hint) = self.hint {
            out.extend_from_slice(b",\"hint\":");
            quote(hint, out);
        }
        out.extend_from_slice(b",\"request_id\":");
        quote(self.request_id, out);
        out.extend_from_slice(b"}}");
    }

    fn write_anthropic(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"type\":\"error\",\"error\":{\"type\":");
        quote(anthropic_type(self.status), out);
        out.extend_from_slice(b",\"message\":");
        self.write_message_with_hint(out);
        out.extend_from_slice(b"},\"request_id\":");
        quote(self.request_id, out);
        out.push(b'}');
    }

    fn write_gemini(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"error\":{\"code\":");
        write_number(u64::from(self.status), out);
        out.extend_from_slice(b",\"message\":");
        self.write_message_with_hint(out);
        out.extend_from_slice(b",\"status\":");
        quote(gemini_status(self.status), out);
        if let Some(seconds) = self.retry_after_s {
            let info = b",\"details\":[{\"@type\":\"type.googleapis.com/google.rpc.RetryInfo\",\
                \"retryDelay\":\"";
            out.extend_from_slice(info);
            write_number(u64::from(seconds), out);
            out.extend_from_slice(b"s\"}]");
        }
        out.extend_from_slice(b"}}");
    }

    fn write_message_with_hint(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        quote_inner(self.message, out);
        if let Some(hint) = self.hint {
            out.push(b' ');
            quote_inner(hint, out);
        }
        out.push(b'"');
    }
}

/// One row of `GET /v1/models`.
#[derive(Clone, Copy, Debug)]
pub struct ModelEntry<'a> {
    /// The name that clients put into `model`.
    pub id: &'a str,
    /// Seconds since 1970, as OpenAI has it.
    pub created: u64,
    /// Who stands behind it, as the server or the configuration says.
    pub owned_by: &'a str,
    /// Free text of the configuration, maybe empty.
    pub description: &'a str,
    /// The group or server that answers for it.
    pub provider: &'a str,
    /// The address it is served at, `host:port`, where clients may know it.
    pub endpoint: Option<&'a str>,
}

impl ModelEntry<'_> {
    /// Appends the object of `GET /v1/models/{id}`, compact, keys in a fixed order.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":");
        quote(self.id, out);
        out.extend_from_slice(b",\"object\":\"model\",\"created\":");
        write_number(self.created, out);
        for (key, value) in [
            (",\"owned_by\":", self.owned_by),
            (",\"description\":", self.description),
            (",\"provider\":", self.provider),
        ] {
            out.extend_from_slice(key.as_bytes());
            quote(value, out);
        }
        if let Some(endpoint) = self.endpoint {
            out.extend_from_slice(b",\"endpoint\":");
            quote(endpoint, out);
        }
        out.push(b'}');
    }
}

/// Appends the whole list of `GET /v1/models` in the order in which `entries` come.
///
/// Shape: filtering, sorting and removal of doubles are the caller's, who owns the table.
pub fn write_models_list<'a>(entries: impl IntoIterator<Item = ModelEntry<'a>>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"object\":\"list\",\"data\":[");
    for (index, entry) in entries.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        entry.write(out);
    }
    out.extend_from_slice(b"]}");
}

/// Anthropic's closed list of error types, by status.
fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

/// The name of google.rpc.Code that goes with an HTTP status.
fn gemini_status(status: u16) -> &'static str {
    match status {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        408 | 504 => "DEADLINE_EXCEEDED",
        429 => "RESOURCE_EXHAUSTED",
        501 | 505 => "UNIMPLEMENTED",
        502 | 503 => "UNAVAILABLE",
        500.. => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    }
}

/// Tells whether `path` begins with `wanted` as whole segments.
fn begins(path: &[u8], wanted: &[u8]) -> bool {
    path.strip_prefix(wanted).is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b':')))
}

/// Appends a number in decimal without going through `fmt`.
fn write_number(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEYLESS: ErrorReply<'_> = ErrorReply {
        status: 401,
        code: "invalid_api_key",
        kind: "authentication_error",
        message: "Invalid API key.",
        hint: Some("Ask \"ops\"."),
        request_id: "req-1",
        retry_after_s: None,
    };

    fn body(reply: &ErrorReply<'_>, dialect: Dialect) -> String {
        let mut out = Vec::new();
        reply.write_body(dialect, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_dialect_has_its_shape_and_order() {
        assert_eq!(
            body(&KEYLESS, Dialect::OpenAi),
            r#"{"error":{"message":"Invalid API key.","type":"authentication_error","param":null,"code":"invalid_api_key","hint":"Ask \"ops\".","request_id":"req-1"}}"#
        );
        assert_eq!(
            body(&KEYLESS, Dialect::Anthropic),
            r#"{"type":"error","error":{"type":"authentication_error","message":"Invalid API key. Ask \"ops\"."},"request_id":"req-1"}"#
        );
        assert_eq!(
            body(&KEYLESS, Dialect::Gemini),
            r#"{"error":{"code":401,"message":"Invalid API key. Ask \"ops\".","status":"UNAUTHENTICATED"}}"#
        );
    }

    #[test]
    fn without_a_hint_the_key_is_left_out() {
        let reply = ErrorReply { hint: None, ..KEYLESS };
        assert!(!body(&reply, Dialect::OpenAi).contains("hint"));
        assert!(body(&reply, Dialect::Anthropic).contains("\"Invalid API key.\""));
    }

    #[test]
    fn the_path_tells_the_dialect() {
        let check =
            |path: &str, want| assert_eq!(Dialect::of_path(path.as_bytes()), want, "{path}");
        check("/v1/chat/completions", Dialect::OpenAi);
        check("/v1/models", Dialect::OpenAi);
        check("/v1/models/llama3", Dialect::OpenAi);
        check("/v1/messages", Dialect::Anthropic);
        check("/v1/messages/count_tokens", Dialect::Anthropic);
        check("/team/v1/messages", Dialect::Anthropic);
        check("/v1/messagesque", Dialect::OpenAi);
        check("/v1beta/models/gemini-2.0:streamGenerateContent", Dialect::Gemini);
        check("/v1beta/models", Dialect::Gemini);
        check("/v1/models/gemini:generateContent", Dialect::Gemini);
        check("/models/gemini:generateContent", Dialect::Gemini);
        check("/v1beta/openai/chat/completions", Dialect::OpenAi);
        check("/v1/responses", Dialect::Responses);
        check("/openai/v1/responses/resp_1/cancel", Dialect::Responses);
        check("/v1beta/openai/responses", Dialect::Responses);
        check("/v1/models/responses:generateContent", Dialect::Gemini);
        check("/v1beta/responses", Dialect::Gemini);
        check("/v1/responsesque", Dialect::OpenAi);
        check("", Dialect::OpenAi);
    }

    #[test]
    fn each_status_has_the_dialects_own_name() {
        let check = |status, anthropic, gemini| {
            assert_eq!(anthropic_type(status), anthropic, "{status}");
            assert_eq!(gemini_status(status), gemini, "{status}");
        };
        check(400, "invalid_request_error", "INVALID_ARGUMENT");
        check(401, "authentication_error", "UNAUTHENTICATED");
        check(403, "permission_error", "PERMISSION_DENIED");
        check(404, "not_found_error", "NOT_FOUND");
        check(408, "invalid_request_error", "DEADLINE_EXCEEDED");
        check(413, "request_too_large", "INVALID_ARGUMENT");
        check(429, "rate_limit_error", "RESOURCE_EXHAUSTED");
        check(500, "api_error", "INTERNAL");
        check(502, "api_error", "UNAVAILABLE");
        check(503, "overloaded_error", "UNAVAILABLE");
        check(504, "api_error", "DEADLINE_EXCEEDED");
    }

    #[test]
    fn a_dying_stream_gets_one_whole_event() {
        let mut out = Vec::new();
        KEYLESS.write_sse_event(Dialect::OpenAi, &mut out);
        assert!(out.starts_with(b"data: {\"error\":") && out.ends_with(b"}}\n\n"));
        out.clear();
        KEYLESS.write_sse_event(Dialect::Anthropic, &mut out);
        assert!(
            out.starts_with(b"event: error\ndata: {\"type\":\"error\"") && out.ends_with(b"}\n\n")
        );
    }

    #[test]
    fn responses_have_an_error_event_of_their_own() {
        let mut out = Vec::new();
        KEYLESS.write_sse_event(Dialect::Responses, &mut out);
        let text = String::from_utf8(out).unwrap();
        let data = text.strip_prefix("event: error\ndata: ").unwrap().trim_end();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["type"], &data["code"]), (&"error".into(), &"invalid_api_key".into()));
        assert_eq!(data["message"], "Invalid API key. Ask \"ops\".");
        assert_eq!(data["error"]["code"], "invalid_api_key");
        assert!(data["sequence_number"].is_u64() && data["param"].is_null());
        assert_eq!(body(&KEYLESS, Dialect::Responses), body(&KEYLESS, Dialect::OpenAi));
    }

    #[test]
    fn gemini_reads_when_to_come_back_in_the_body() {
        let reply = ErrorReply { status: 429, retry_after_s: Some(7), ..KEYLESS };
        let told: serde_json::Value = serde_json::from_str(&body(&reply, Dialect::Gemini)).unwrap();
        let details = &told["error"]["details"][0];
        assert_eq!(details["@type"], "type.googleapis.com/google.rpc.RetryInfo");
        assert_eq!(details["retryDelay"], "7s");
        assert!(!body(&KEYLESS, Dialect::Gemini).contains("details"));
        assert!(!body(&reply, Dialect::OpenAi).contains("details"));
    }

    #[test]
    fn the_list_of_models_is_compact() {
        let entry = |id| ModelEntry {
            id,
            created: 1_700_000_000,
            owned_by: "me",
            description: "a \"b\"",
            provider: "gpu0",
            endpoint: Some("h:1"),
        };
        let mut out = Vec::new();
        write_models_list([entry("a"), entry("b")], &mut out);
        let one = |id| {
            format!(
                r#"{{"id":"{id}","object":"model","created":1700000000,"owned_by":"me","description":"a \"b\"","provider":"gpu0","endpoint":"h:1"}}"#
            )
        };
        let want = format!(r#"{{"object":"list","data":[{},{}]}}"#, one("a"), one("b"));
        assert_eq!(String::from_utf8(out).unwrap(), want);
        let mut none = Vec::new();
        write_models_list([], &mut none);
        assert_eq!(none, br#"{"object":"list","data":[]}"#);
    }

    proptest! {
        #[test]
        fn any_text_gives_json_that_reads_back(
            status in any::<u16>(), kind in any::<String>(), message in any::<String>(),
            code in any::<String>(), retry_after_s in any::<Option<u32>>(),
            hint in any::<Option<String>>(), request_id in any::<String>(),
        ) {
            let reply = ErrorReply {
                status, kind: &kind, message: &message, hint: hint.as_deref(), request_id: &request_id,
                code: &code, retry_after_s,
            };
            let all = [Dialect::OpenAi, Dialect::Anthropic, Dialect::Gemini, Dialect::Responses];
            for dialect in all {
                let value: serde_json::Value = serde_json::from_str(&body(&reply, dialect)).unwrap();
                let told = value["error"]["message"].as_str().unwrap();
                prop_assert!(told.starts_with(&message));
                let mut event = Vec::new();
                reply.write_sse_event(dialect, &mut event);
                // One event: no line end inside the data.
                prop_assert_eq!(event.windows(2).filter(|w| w == b"\n\n").count(), 1);
                prop_assert!(!event.contains(&b'\r'));
            }
        }
    }
}
