//! Plans on disk: written, opened, damaged, cut, replaced.

use std::fs;
use std::path::{Path, PathBuf};

use lathe_plan::header::{self, Header};
use lathe_plan::schema::Layout;
use lathe_plan::testing::{
    small_cuda_plan, small_cuda_tables, small_cuda_weights, small_plan, small_tables, small_weight_bytes,
    small_weights, write_small,
};
use lathe_plan::{Damage, Plan, PlanError, PlanWriter, strip_ptx};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn written(folder: &Path) -> (PathBuf, Vec<u8>) {
    let path = folder.join("engine.plan");
    write_small(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

#[test]
fn what_is_written_is_read() {
    let folder = folder();
    let (path, bytes) = written(folder.path());
    let plan = Plan::open(&path).unwrap();
    let tables = small_tables(plan.weights());
    assert_eq!(plan.card(), &tables.card);
    assert_eq!(plan.programs(), tables.programs);
    assert_eq!(plan.text(), &tables.text);
    assert_eq!(plan.tokenizer_json(), tables.tokenizer.as_deref());
    assert_eq!(plan.self_test(), tables.self_test.as_ref());
    for (i, w) in plan.weights().iter().enumerate() {
        assert_eq!(plan.weight_bytes(i), small_weight_bytes(w));
        assert_eq!(plan.weight_bytes(i).as_ptr() as usize % 64, 0);
        assert_eq!(plan.find_weight(&w.name, w.layout), Some(i));
    }
    assert_eq!(plan.find_weight("rope", Layout::Panel16), None);
    let mut told = Vec::new();
    plan.verify_weights(|done| told.push(done)).unwrap();
    assert_eq!(told.len(), plan.weights().len());
    plan.prefetch_weights();
    plan.still_whole().unwrap();
    assert_eq!(bytes, small_plan().unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary file is gone");
}

#[test]
fn the_bytes_do_not_depend_on_threads() {
    let folder = folder();
    let path = folder.path().join("threads.plan");
    let writer = PlanWriter::create(&path, small_weights(), 0).unwrap();
    std::thread::scope(|scope| {
        for (i, weight) in writer.weights().iter().enumerate().rev() {
            let writer = &writer;
            scope.spawn(move || {
                let mut sink = writer.weight(i).unwrap();
                for piece in small_weight_bytes(weight).chunks(100) {
                    sink.write(piece).unwrap();
                }
                sink.finish().unwrap();
            });
        }
    });
    let tables = small_tables(writer.weights());
    let done = writer.finish(&tables).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(done.file_bytes, bytes.len() as u64);
    assert_eq!(bytes, small_plan().unwrap());
}

#[test]
fn code_is_written_and_read() {
    let folder = folder();
    let path = folder.path().join("cuda.plan");
    let writer = PlanWriter::create(&path, small_cuda_weights(), 0).unwrap();
    for (i, weight) in writer.weights().iter().enumerate() {
        writer.write_weight(i, &small_weight_bytes(weight)).unwrap();
    }
    let tables = small_cuda_tables(writer.weights());
    writer.finish(&tables).unwrap();
    assert_eq!(fs::read(&path).unwrap(), small_cuda_plan().unwrap());
    let plan = Plan::open(&path).unwrap();
    assert_eq!(plan.programs(), tables.programs);
    assert_eq!(plan.code_section(), tables.code);
    let [rows, tiles, sampler] = &plan.programs()[0].modules[..] else { panic!("three modules") };
    assert!(plan.module_cubin(rows).unwrap().starts_with(b"\x7fELF"));
    assert_eq!(plan.module_cubin(tiles), Some(&[0x7f; 100][..]));
    assert_eq!(plan.module_cubin(sampler), None);
    assert!(plan.module_ptx(sampler).unwrap().starts_with(".version 8.0\n"));
    for blob in [rows.cubin, rows.ptx, tiles.cubin].iter().flatten() {
        assert_eq!(plan.code(blob).as_ptr() as usize % 64, 0);
        assert_eq!(*blake3::hash(plan.code(blob)).as_bytes(), blob.hash);
    }
    assert_eq!(Plan::from_bytes(small_plan().unwrap()).unwrap().code_section(), b"");
}

#[test]
fn code_that_is_damaged_or_gone_is_named() {
    let file = small_cuda_plan().unwrap();
    let code = Header::parse(Path::new("x"), &file).unwrap();
    let code = code.sections.iter().position(|s| s.tag == header::CODE).unwrap();
    let hash = with_header(&file, |h| h.sections[code].hash[0] ^= 1);
    assert_eq!(fault(hash), Damage::SectionHash { tag: "CODE" });
    // Skipped as unknown, it is missed where a module points into it.
    let gone = with_header(&file, |h| {
        h.sections[code].tag = *b"NEW!";
        h.sections[code].flags = 0;
    });
    let e = Plan::from_bytes(gone).unwrap_err().to_string();
    assert!(
        e.starts_with("plan in memory: program decoder: module 0 rows: ") && e.ends_with("the code's 0"),
        "{e}"
    );
}

#[test]
fn ptx_is_stripped_where_machine_code_stays() {
    let folder = folder();
    let path = folder.path().join("stripped.plan");
    let whole = Plan::from_bytes(small_cuda_plan().unwrap()).unwrap();
    strip_ptx(&whole, &path).unwrap();
    let plan = Plan::open(&path).unwrap();
    plan.verify_weights(|_| ()).unwrap();
    let ptx: Vec<_> = plan.programs()[0].modules.iter().map(|m| m.ptx.is_some()).collect();
    assert_eq!(ptx, [false, false, true], "the last has no machine code");
    for (new, old) in plan.programs()[0].modules.iter().zip(&whole.programs()[0].modules) {
        assert_eq!(plan.module_cubin(new), whole.module_cubin(old));
        assert!(new.ptx.is_none() || plan.module_ptx(new) == whole.module_ptx(old));
    }
    let same = |p: &Plan| (p.weights().to_vec(), p.card().clone(), p.tokenizer_json().map(<[u8]>::to_vec));
    assert_eq!(same(&plan), same(&whole));
    // Again, in place: nothing is left to strip.
    let before = fs::read(&path).unwrap();
    strip_ptx(&plan, &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before);

    let mut bytes = small_cuda_plan().unwrap();
    bytes[4096 + 3072] ^= 1;
    let damaged = Plan::from_bytes(bytes).unwrap();
    let e = strip_ptx(&damaged, &folder.path().join("x.plan")).unwrap_err().to_string();
    assert_eq!(e, "plan in memory: weight norm.0 does not match its hash; copy or compile the plan again");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let folder = folder();
    let path = folder.path().join("x.plan");
    let writer = PlanWriter::create(&path, small_weights(), 0).unwrap();
    assert!(writer.temp_path().exists());
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_a_killed_writer_left_is_removed_and_what_a_live_one_writes_is_not() {
    let folder = folder();
    let path = folder.path().join("x.plan");
    let abandoned = folder.path().join(".x.plan.1-0.part");
    let foreign = folder.path().join(".y.plan.1-0.part");
    for file in [&abandoned, &foreign] {
        std::fs::write(file, "half").unwrap();
    }
    let live = PlanWriter::create(&path, vec![], 0).unwrap();
    let second = PlanWriter::create(&path, vec![], 0).unwrap();
    assert!(!abandoned.exists());
    assert!(foreign.exists() && live.temp_path().exists() && second.temp_path().exists());
}

#[test]
fn the_writer_refuses_misuse() {
    let folder = folder();
    let path = folder.path().join("x.plan");
    let create = || PlanWriter::create(&path, small_weights(), 0).unwrap();
    let message = |e: PlanError| e.to_string();

    let w = create();
    w.write_weight(1, &[0; 64]).unwrap();
    assert_eq!(
        message(w.write_weight(1, &[0; 64]).unwrap_err()),
        "plan writer: weight norm.0 is written twice"
    );
    assert_eq!(message(w.write_weight(99, &[]).unwrap_err()), "plan writer: weight 99 does not exist");
    assert_eq!(
        message(w.write_weight(5, &[0; 65]).unwrap_err()),
        "plan writer: weight norm.1 is given more bytes than its layout has"
    );
    assert_eq!(
        message(w.write_weight(8, &[0; 63]).unwrap_err()),
        "plan writer: weight norm.2 is given fewer bytes than its layout has"
    );
    let tables = small_tables(w.weights());
    assert_eq!(message(w.finish(&tables).unwrap_err()), "plan writer: weight embed is not written");

    let w = create();
    for (i, weight) in w.weights().iter().enumerate() {
        w.write_weight(i, &small_weight_bytes(weight)).unwrap();
    }
    let mut tables = small_tables(w.weights());
    tables.card.limits.max_batch = 0;
    assert!(matches!(w.finish(&tables), Err(PlanError::Invalid { .. })));

    let mut odd = small_weights();
    odd[1].layout = Layout::Panel16;
    assert_eq!(
        message(PlanWriter::create(&path, odd, 0).unwrap_err()),
        "plan writer: weight norm.0: panel16 holds no bf16[32]"
    );
    match PlanWriter::create(&path, small_weights(), u64::MAX / 2) {
        Err(PlanError::DiskFull { need, free, .. }) => assert!(need > free),
        other => panic!("{other:?}"),
    }
    for bad in [folder.path().join("no/such/folder/x.plan"), folder.path().to_path_buf(), "..".into()] {
        assert!(matches!(PlanWriter::create(&bad, vec![], 0), Err(PlanError::Io { .. })), "{bad:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn other_files_are_named() {
    let folder = folder();
    let path = folder.path().join("x.plan");
    for (bytes, what) in [
        (&b""[..], "this is an empty file, not an engine plan"),
        (b"GGUF\x03\0\0\0", "this is a GGUF file, not an engine plan"),
    ] {
        fs::write(&path, bytes).unwrap();
        let e = Plan::open(&path).unwrap_err().to_string();
        assert_eq!(e, format!("{}: {what}", path.display()));
        assert!(matches!(Plan::from_bytes(bytes.to_vec()), Err(PlanError::Foreign { .. })));
    }
    for missing in [folder.path().join("missing"), folder.path().to_path_buf()] {
        assert!(matches!(Plan::open(&missing), Err(PlanError::Io { action: "cannot open", .. })));
    }
}

/// The file with an edited header, its hash made right.
fn with_header(file: &[u8], edit: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::parse(Path::new("x"), file).unwrap();
    edit(&mut header);
    let bytes = header.encode().unwrap();
    let mut out = file.to_vec();
    out[..bytes.len()].copy_from_slice(&bytes);
    out
}

fn fault(bytes: Vec<u8>) -> Damage {
    match Plan::from_bytes(bytes) {
        Err(PlanError::Damaged { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_way_of_being_damaged() {
    let file = small_plan().unwrap();
    let at = |tag| {
        let header = Header::parse(Path::new("x"), &file).unwrap();
        header.sections.iter().position(|s| s.tag == tag).unwrap()
    };
    let edit = |i: usize, f: fn(&mut header::Section)| fault(with_header(&file, |h| f(&mut h.sections[i])));
    let name = |s: &str| s.to_string();
    let (data, card, test) = (at(header::WDAT), at(header::CARD), at(header::TEST));

    assert_eq!(edit(card, |s| s.flags = 6), Damage::SectionFlags { tag: name("CARD"), flags: 6 });
    assert_eq!(edit(card, |s| s.version = 2), Damage::SectionUnknown { tag: name("CARD"), version: 2 });
    assert_eq!(edit(card, |s| s.tag = *b"NEW!"), Damage::SectionUnknown { tag: name("NEW!"), version: 1 });
    assert_eq!(edit(test, |s| s.tag = header::CARD), Damage::SectionTwice { tag: name("CARD") });
    assert!(matches!(edit(card, |s| s.offset += 8), Damage::SectionAlignment { align: 64, .. }));
    assert!(matches!(edit(data, |s| s.offset += 64), Damage::SectionAlignment { align: 4096, .. }));
    assert_eq!(edit(card, |s| s.offset = 64), Damage::SectionOverlap { tag: name("CARD"), offset: 64 });
    assert!(matches!(edit(data, |s| s.length += 64), Damage::SectionOverlap { .. }));
    assert!(matches!(edit(test, |s| s.length += 1), Damage::SectionCut { .. }));
    assert!(matches!(edit(test, |s| s.length = u64::MAX), Damage::SectionCut { need: u64::MAX, .. }));
    assert_eq!(edit(test, |s| s.length -= 1), Damage::Trailing { extra: 1 });
    for (tag, what) in [
        (header::CARD, "CARD"),
        (header::PROG, "PROG"),
        (header::WTAB, "WTAB"),
        (header::WDAT, "WDAT"),
        (header::TEXT, "TEXT"),
        (header::TOKN, "TOKN"),
        (header::TEST, "TEST"),
    ] {
        let i = at(tag);
        let bytes = with_header(&file, |h| h.sections[i].hash[0] ^= 1);
        assert_eq!(fault(bytes), Damage::SectionHash { tag: what });
        if tag != header::TOKN && tag != header::TEST {
            let bytes = with_header(&file, |h| {
                h.sections[i].tag = *b"NEW!";
                h.sections[i].flags = 0;
            });
            assert_eq!(fault(bytes), Damage::SectionMissing { tag: what });
        }
    }
    let mut longer = file.clone();
    longer.push(0);
    assert_eq!(fault(longer), Damage::Trailing { extra: 1 });
    assert!(matches!(
        fault(with_header(&file, |h| h.producer = "lathe 9.9.9".into())),
        Damage::HeaderCard { field: "producer" }
    ));
    assert!(matches!(
        fault(with_header(&file, |h| h.flags = "--max-batch 5".into())),
        Damage::HeaderCard { field: "flags" }
    ));
}

/// The part of an error's variants that a case must be found for.
fn body_of(source: &'static str, name: &str) -> &'static str {
    source.split_once(&format!("pub enum {name} {{")).unwrap().1.split_once("\n}").unwrap().0
}

#[test]
fn tables_that_do_not_decode_are_named() {
    let file = small_plan().unwrap();
    for tag in [header::CARD, header::PROG, header::WTAB, header::TEXT, header::TEST] {
        let header = Header::parse(Path::new("x"), &file).unwrap();
        let i = header.sections.iter().position(|s| s.tag == tag).unwrap();
        let s = &header.sections[i];
        let (start, end) = (s.offset as usize, (s.offset + s.length) as usize);
        let mut cut = with_header(&file, |h| {
            h.sections[i].length -= 1;
            h.sections[i].hash = *blake3::hash(&file[start..end - 1]).as_bytes();
        });
        if end == file.len() {
            cut.pop();
        }
        match fault(cut) {
            Damage::Table { tag: named, fault } => {
                assert_eq!(
                    (named.as_bytes(), fault.to_string().as_str()),
                    (&tag[..], "the value goes on after the last byte")
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn unknown_optional_sections_are_skipped() {
    let file = small_plan().unwrap();
    for edit in [|s: &mut header::Section| s.tag = *b"NEW!", |s: &mut header::Section| s.version = 2] {
        let bytes = with_header(&file, |h| edit(h.sections.last_mut().unwrap()));
        let plan = Plan::from_bytes(bytes).unwrap();
        assert_eq!(plan.self_test(), None);
        assert!(plan.tokenizer_json().is_some());
    }
}

#[test]
fn a_changed_weight_is_named() {
    let mut bytes = small_plan().unwrap();
    bytes[4096 + 3072] ^= 1;
    let e = Plan::from_bytes(bytes).unwrap().verify_weights(|_| ()).unwrap_err();
    assert_eq!(
        e.to_string(),
        "plan in memory: weight norm.0 does not match its hash; copy or compile the plan again"
    );
}

/// Reads the variants from the source, so that a new one without a test fails here.
#[test]
fn every_kind_of_damage_has_a_case() {
    let tests = concat!(include_str!("files.rs"), include_str!("../src/header.rs"));
    let missing: Vec<_> = body_of(include_str!("../src/error.rs"), "Damage")
        .lines()
        .filter_map(|l| l.strip_prefix("    ").filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase())))
        .map(|l| l.trim_end_matches([' ', '{', ',']))
        .filter(|variant| !tests.contains(&format!("Damage::{variant}")) && *variant != "WeightHash")
        .collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}
