//! FORMAT.md is true: its header bytes, its fields and its encodings are those of the code.

use lathe_numerics::DType;
use lathe_plan::codec;
use lathe_plan::header::{Header, REQUIRED, Section, VERSION, WDAT};
use lathe_plan::operand::{ROWS, SEQUENCES, SYMBOL_NAMES, TOKENS};
use lathe_plan::schema::{Arg, Extent, StepSymbol, StepTable};
use lathe_plan::schema::{Buffer, Expr, Input, Layout, Operand, Param, Symbol, Target};

const PAGE: &str = include_str!("../FORMAT.md");
const SCHEMA: &str = include_str!("../src/schema.rs");
const LAUNCH: &str = include_str!("../../device/src/launch.rs");
const TABLES: &str = include_str!("../../device/src/tables.rs");

/// The lines of the fenced block of this kind.
fn block(kind: &str) -> Vec<&'static str> {
    let fence = format!("```{kind}\n");
    let (_, rest) = PAGE.split_once(&fence).unwrap();
    rest.split_once("```").unwrap().0.lines().collect()
}

fn hex(text: &str) -> Vec<u8> {
    text.split_whitespace().map(|b| u8::from_str_radix(b, 16).unwrap()).collect()
}

#[test]
fn the_header_example_is_what_is_written() {
    let header = Header {
        version: VERSION,
        producer: "lathe 0.1.0".into(),
        flags: "--max-batch 4".into(),
        sections: vec![Section {
            tag: WDAT,
            version: 1,
            flags: REQUIRED,
            offset: 4096,
            length: 64,
            hash: [0xaa; 32],
        }],
    };
    let lines = block("header");
    let bytes: Vec<u8> = lines.iter().flat_map(|l| hex(l.split("  ").nth(1).unwrap())).collect();
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line.split("  ").next().unwrap(), format!("{:04x}", i * 16));
    }
    let written = header.encode().unwrap();
    let want: Vec<String> = written
        .chunks(16)
        .enumerate()
        .map(|(i, row)| {
            let bytes: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
            format!("{:04x}  {}", i * 16, bytes.join(" "))
        })
        .collect();
    assert_eq!(bytes, written, "the page should say:\n{}", want.join("\n"));
    assert_eq!(Header::parse("x".as_ref(), &bytes).unwrap(), header);
}

#[test]
fn the_encodings_are_what_is_written() {
    let expr = Expr { constant: 5, terms: vec![(TOKENS, 2), (ROWS, 1)] };
    let rows = Expr::symbol(TOKENS);
    let buffer = Buffer { name: "x".into(), dtype: DType::BF16, rows, cols: 300, offset: 0 };
    let symbol = Symbol { name: SYMBOL_NAMES[SEQUENCES as usize].into(), min: 0, max: 32 };
    let examples = [
        ("300", codec::encode(&300u64)),
        ("1.0", codec::encode(&1.0f32)),
        ("\"ab\"", codec::encode(&"ab".to_string())),
        ("None", codec::encode(&None::<u32>)),
        ("Some(7)", codec::encode(&Some(7u32))),
        ("Expr 2 t + r + 5", codec::encode(&expr)),
        ("Symbol s in 0..=32", codec::encode(&symbol)),
        ("DType::BF16", codec::encode(&DType::BF16)),
        ("Operand buffer 3 bf16[t, 300]", codec::encode(&Operand::buffer(3, &buffer))),
        ("Operand input Positions", codec::encode(&Operand::input(Input::Positions))),
        ("Param eps = 0.5", codec::encode(&("eps".to_string(), Param::Float(0.5)))),
        ("Layout::Panel16", codec::encode(&Layout::Panel16)),
        ("Target sm_80", codec::encode(&Target::Cuda { arch: "sm_80".into() })),
        ("Arg table Blocks", codec::encode(&Arg::Table(StepTable::Blocks))),
        ("Extent 2 ceil(t / 300)", codec::encode(&Extent::per(StepSymbol::Tokens, 300, 2))),
    ];
    let lines = block("encodings");
    assert_eq!(lines.len(), examples.len());
    for (line, (name, bytes)) in lines.iter().zip(examples) {
        let (said, said_bytes) = line.rsplit_once(" = ").unwrap();
        assert_eq!((said.trim(), hex(said_bytes)), (name, bytes.unwrap()), "{line}");
    }
}

/// Fields of a struct as `name: type`, variants of an enum as `index name holds`, from the page's tables.
fn on_the_page(kind: &str, name: &str) -> Vec<String> {
    let Some((_, rest)) = PAGE.split_once(&format!("\n### {kind} {name}\n")) else { return Vec::new() };
    let section = rest.split("\n#").next().unwrap();
    let rows = section.lines().filter(|l| l.starts_with('|')).skip(2);
    let bare = |cell: &str| cell.trim().trim_matches('`').to_string();
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').collect();
        if kind == "struct" {
            assert!(!cells[3].trim().is_empty(), "{name}: {row} has no meaning");
            format!("{}: {}", bare(cells[1]), bare(cells[2]))
        } else {
            format!("{} {} {}", bare(cells[1]), bare(cells[2]), bare(cells[3])).trim_end().to_string()
        }
    })
    .collect()
}

/// What a source file defines and plans hold.
fn items(source: &str) -> Vec<&str> {
    let parts: Vec<&str> = source.split("\npub ").collect();
    let stored = |before: &str| {
        let attributes = before.rsplit("\n\n").next().unwrap();
        ["Encode", "Decode"].iter().all(|derive| attributes.contains(derive))
    };
    parts.windows(2).filter(|pair| stored(pair[0])).map(|pair| pair[1]).collect()
}

/// The same from the source.
fn in_the_source(kind: &str, body: &str) -> Vec<String> {
    let lines =
        || body.lines().filter(|l| !l.trim_start().starts_with("///") && !l.trim_start().starts_with('#'));
    if kind == "struct" {
        return lines()
            .filter_map(|l| Some(l.strip_prefix("    pub ")?.trim_end_matches(',').to_string()))
            .collect();
    }
    let mut variants: Vec<(String, Vec<String>)> = Vec::new();
    for line in lines() {
        if let Some(field) = line.strip_prefix("        ") {
            variants.last_mut().unwrap().1.push(field.trim_end_matches(',').to_string());
        } else if let Some(variant) = line.strip_prefix("    ").filter(|l| !l.starts_with('}')) {
            let end = variant.find(['(', ' ', ',']).unwrap_or(variant.len());
            let held = variant[end..].trim_matches(['(', ')', ',', ' ', '{']);
            variants.push((variant[..end].to_string(), vec![held.to_string()]));
        }
    }
    variants
        .into_iter()
        .enumerate()
        .map(|(i, (name, held))| {
            let held: Vec<String> = held.into_iter().filter(|h| !h.is_empty()).collect();
            format!("{i} {name} {}", held.join(", ")).trim_end().to_string()
        })
        .collect()
}

#[test]
fn every_field_is_on_the_page() {
    // The schema names the device crate's `Symbol` `StepSymbol`, beside its own `Symbol`.
    let renamed = |source: &str| {
        source
            .replace("Symbol ", "StepSymbol ")
            .replace("Symbol,", "StepSymbol,")
            .replace("(Symbol)", "(StepSymbol)")
    };
    let sources = [SCHEMA.to_string(), renamed(LAUNCH), renamed(TABLES)];
    let mut found = 0;
    for item in sources.iter().flat_map(|source| items(source)) {
        for kind in ["struct", "enum"] {
            let Some(rest) = item.strip_prefix(&format!("{kind} ")) else { continue };
            let (name, body) = rest.split_once(" {\n").unwrap();
            let body = body.split_once("\n}").unwrap().0;
            assert_eq!(on_the_page(kind, name), in_the_source(kind, body), "{kind} {name}");
            found += 1;
        }
    }
    assert_eq!(found, PAGE.matches("\n### ").count(), "the page describes what is not in the schema");
    assert!(found >= 30);
    for (code, dtype) in ["F32", "F16", "BF16", "I32", "U32"].iter().enumerate() {
        let code = code as u8;
        assert_eq!(format!("{:?}", codec::decode::<DType>(&[code]).unwrap()), **dtype);
        assert_eq!(DType::from_code(code).map(|d| format!("{d:?}")).as_deref(), Some(*dtype));
    }
}
