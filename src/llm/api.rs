//! Whether a path names an API of a model server at all.
//!
//! The one idea: what a call is about stands at its end (`…/chat/completions`), whatever stands
//! in front of it, so the last segment is looked up in a list. It decides nothing but words: a
//! request without a model is told that its model is missing where one belongs, and that there
//! is no such place anywhere else (a tool's telemetry, a typing error). A request that names a
//! model is routed by it under any path.

/// Last segments of the calls of OpenAI, Anthropic, Cohere and Ollama, and of what vLLM, SGLang,
/// TGI and llama-server add, that name their model in the body. Sorted.
const CALLS: [&[u8]; 42] = [
    b"apply-template",
    b"calls",
    b"chat",
    b"classify",
    b"client_secrets",
    b"compact",
    b"complete",
    b"completion",
    b"completions",
    b"count_tokens",
    b"create",
    b"delete",
    b"detokenize",
    b"edits",
    b"embed",
    b"embedding",
    b"embeddings",
    b"encode",
    b"generate",
    b"generate_stream",
    b"generations",
    b"images",
    b"infill",
    b"input_tokens",
    b"invocations",
    b"messages",
    b"moderations",
    b"pooling",
    b"pull",
    b"push",
    b"rerank",
    b"reranking",
    b"responses",
    b"score",
    b"sessions",
    b"show",
    b"speech",
    b"tokenize",
    b"transcriptions",
    b"translations",
    b"variations",
    b"videos",
];

/// Tells whether a request to this path, without its query, is one that names a model.
#[must_use]
pub fn names_api(path: &[u8]) -> bool {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let last = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    CALLS.binary_search(&last).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted() {
        assert!(CALLS.is_sorted());
    }

    #[test]
    fn calls_are_known_by_their_end() {
        for path in [
            "/v1/chat/completions",
            "/v1/chat/completions/",
            "/openai/v1/responses",
            "/api/chat",
            "/v1/messages/count_tokens",
            "/v1/audio/transcriptions",
            "/tokenize",
        ] {
            assert!(names_api(path.as_bytes()), "{path}");
        }
        for path in [
            "/",
            "",
            "/favicon.ico",
            "/api/event_logging/batch",
            "/v1internal:loadCodeAssist",
            "/v1",
            "/v1/files",
            "/chat/completionsx",
        ] {
            assert!(!names_api(path.as_bytes()), "{path}");
        }
    }
}
