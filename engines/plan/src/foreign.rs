//! Names files that are not plans.

/// What a file that does not start with the plan's magic looks like, with its article.
pub(crate) fn describe(bytes: &[u8]) -> &'static str {
    const MAGICS: &[(&[u8], &str)] = &[
        (b"\x7fELF", "an ELF program or library"),
        (b"GGUF", "a GGUF file"),
        (b"ggjt", "an old llama.cpp model"),
        (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint is one)"),
        (b"\x1f\x8b", "a gzip file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x80\x02", "a pickle"),
        (b"\x80\x04", "a pickle"),
        (b"ptrt", "a TensorRT engine"),
        (b"ftrt", "a TensorRT engine"),
        (b"version https://git-lfs", "a git-lfs pointer (run `git lfs pull`)"),
        (b"#!", "a script"),
        (b"<!DOCTYPE", "a web page"),
        (b"<html", "a web page"),
        (b"{", "a JSON file"),
    ];
    if bytes.is_empty() {
        return "an empty file";
    }
    // safetensors: u64 length of a JSON header that follows.
    if bytes.len() > 8 && bytes[8] == b'{' && bytes[6..8] == [0, 0] {
        return "a safetensors file (compile it: `compile --model DIR`)";
    }
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return what;
    }
    if bytes.iter().all(|b| *b == 0) {
        return "a file of zeros";
    }
    if bytes.iter().take(512).all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return "a text file";
    }
    "a file of an unknown kind"
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn names_what_people_pass_by_mistake() {
        for (bytes, what) in [
            (&b""[..], "an empty file"),
            (b"\x7fELF\x02\x01", "an ELF program or library"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
            (b"PK\x03\x04abc", "a zip archive (a PyTorch checkpoint is one)"),
            (b"\x40\x01\0\0\0\0\0\0{\"a\"", "a safetensors file (compile it: `compile --model DIR`)"),
            (b"{\"a\": 1}", "a JSON file"),
            (b"\0\0\0\0\0\0\0\0\0", "a file of zeros"),
            (b"hello there", "a text file"),
            (b"\x89LATHE\n\n", "a file of an unknown kind"),
        ] {
            assert_eq!(describe(bytes), what);
        }
    }
}
