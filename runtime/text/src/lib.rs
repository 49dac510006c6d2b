//! Tokenizer, chat template, incremental detokenisation, stop strings; pure.
