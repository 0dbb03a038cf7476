//! (floor llm)
