//! Runs `tests/filetests/ir`.

use std::path::Path;

use lathe_ir::filetest::{check, no_commands, run_folder};

#[test]
fn filetests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/filetests/ir");
    match run_folder(&folder, &no_commands) {
        Ok(n) => assert!(n >= 4, "{n} files"),
        Err(failures) => panic!("{failures}"),
    }
}

const TEXT: &str = "// test: rename
graph @g(%x: f32[1]) {
  return %x
}
";

#[test]
fn outcomes_are_compared_and_blessed() {
    let rename = |words: &[&str], g: &mut lathe_ir::Graph| {
        assert_eq!(words, ["rename"]);
        g.name = "h".into();
        Ok(())
    };
    let blessed = check(TEXT, &rename).unwrap().unwrap();
    assert_eq!(blessed, format!("{TEXT}//> graph @h(%x: f32[1]) {{\n//>   return %x\n//> }}\n"));
    assert_eq!(check(&blessed, &rename), Ok(None));
    let stale = blessed.replace("@h", "@i");
    assert_eq!(check(&stale, &rename), Ok(Some(blessed)));
    assert_eq!(
        check(TEXT, &no_commands).unwrap().unwrap(),
        format!("{TEXT}//> error: unknown command rename\n")
    );
}

#[test]
fn announced_errors_must_happen() {
    let verify = |line: &str| {
        let text = format!("// test: verify\ngraph @g(%x: f32[1, 1]) {{\n  {line}\n  return %x\n}}\n");
        check(&text, &no_commands)
    };
    assert_eq!(verify("%y = activation %x {act = silu} : f32[1, 1]"), Ok(None));
    assert_eq!(verify("%y = activation %x {act = silu} : f32[1, 2] // error: stated f32[1, 2]"), Ok(None));
    assert_eq!(
        verify("%y = activation %x {act = silu} : f32[1, 2]"),
        Err("line 3: not announced: activation %y: %y is f32[1, 1], stated f32[1, 2]".into())
    );
    assert_eq!(
        verify("%y = activation %x {act = silu} : f32[1, 1] // error: stated"),
        Err("line 3: announced, but did not happen: stated".into())
    );
    assert_eq!(check("graph", &no_commands), Err("the first line is not \"// test: \"".into()));
}
