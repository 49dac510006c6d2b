//! NVRTC itself: found, opened, and called. All `unsafe` of this crate is here.
//!
//! Bindings are resolved in the very file that was chosen. Going through a loader that searches by name again could find
//! another NVRTC than the one whose version the cache is keyed by.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

use crate::places::{LIBRARIES, Place, places};
use crate::{NvrtcError, VERSION, ptx};

type Status = c_int;
const SUCCESS: Status = 0;
const COMPILATION: Status = 6;

type Program = *mut c_void;
type SizeOf = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Fetch = unsafe extern "C" fn(Program, *mut c_char) -> Status;

/// An opened library; functions as nvrtc.h declares them.
pub(crate) struct Nvrtc {
    version: String,
    create: Symbol<
        unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status,
    >,
    compile: Symbol<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status>,
    destroy: Symbol<unsafe extern "C" fn(*mut Program) -> Status>,
    error: Symbol<unsafe extern "C" fn(Status) -> *const c_char>,
    log: (Symbol<SizeOf>, Symbol<Fetch>),
    ptx: (Symbol<SizeOf>, Symbol<Fetch>),
    cubin: (Symbol<SizeOf>, Symbol<Fetch>),
}

/// What one run gave.
pub(crate) struct Run {
    pub(crate) log: String,
    pub(crate) ptx: String,
    pub(crate) cubin: Vec<u8>,
}

/// What is compiled, checked for NUL bytes.
pub(crate) struct Unit {
    name: String,
    file: CString,
    text: CString,
    header_names: Vec<CString>,
    header_texts: Vec<CString>,
}

impl Unit {
    pub(crate) fn new(name: &str, text: &str, headers: &[(&str, &str)]) -> Result<Self, NvrtcError> {
        let c = |what: &str, text: &str| {
            CString::new(text).map_err(|_| NvrtcError::Input {
                source_name: name.replace('\0', "?"),
                what: what.to_owned(),
            })
        };
        Ok(Unit {
            name: name.to_owned(),
            file: c("the name", &format!("{name}.cu"))?,
            text: c("the text", text)?,
            header_names: headers.iter().map(|h| c("a header's name", h.0)).collect::<Result<_, _>>()?,
            header_texts: headers.iter().map(|h| c(h.0, h.1)).collect::<Result<_, _>>()?,
        })
    }
}

impl Nvrtc {
    /// The first NVRTC of the places that compiles.
    pub(crate) fn open() -> Result<Self, NvrtcError> {
        let mut searched = Vec::new();
        for place in places() {
            match Self::open_at(&place) {
                Ok(nvrtc) => {
                    if nvrtc.version != VERSION {
                        tracing::warn!(
                            version = nvrtc.version,
                            pinned = VERSION,
                            "another NVRTC than the pinned one"
                        );
                    }
                    return Ok(nvrtc);
                }
                Err(why) => searched.push(match place {
                    Place::System => format!("the system: {why}"),
                    Place::Folders { what, .. } => format!("{what}: {why}"),
                }),
            }
        }
        Err(NvrtcError::NotFound { searched: searched.join("; ") })
    }

    fn open_at(place: &Place) -> Result<Self, String> {
        let Place::Folders { folders, .. } = place else {
            let mut why = String::new();
            for name in LIBRARIES {
                match load(Path::new(name)).and_then(|library| Self::bind(&library)) {
                    Ok(nvrtc) => return Ok(nvrtc),
                    Err(error) if why.is_empty() => why = error,
                    Err(_) => {}
                }
            }
            return Err(why);
        };
        let path = folders.iter().flat_map(|folder| LIBRARIES.iter().map(|name| folder.join(name)));
        let Some(path) = path.into_iter().find(|path| path.is_file()) else {
            return Err(format!("no {} in it", LIBRARIES.join(" or ")));
        };
        let path = fs::canonicalize(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        for builtins in builtins(&path) {
            // The pinned library has no run path and opens its builtins by name: by then they must be loaded.
            load(&builtins)?;
        }
        load(&path).and_then(|library| Self::bind(&library))
    }

    fn bind(library: &Library) -> Result<Self, String> {
        /// # Safety
        /// `T` is the type of the function that nvrtc.h declares under the name.
        unsafe fn function<T>(library: &Library, name: &str) -> Result<Symbol<T>, String> {
            // SAFETY: the caller vouches for the type; libraries are never closed, so the symbol stays valid.
            unsafe { library.get::<T>(name) }.map_err(|error| error.to_string())
        }
        // SAFETY: the types of the fields are the declarations of nvrtc.h, unchanged since CUDA 11.1.
        let mut nvrtc = unsafe {
            Nvrtc {
                version: String::new(),
                create: function(library, "nvrtcCreateProgram")?,
                compile: function(library, "nvrtcCompileProgram")?,
                destroy: function(library, "nvrtcDestroyProgram")?,
                error: function(library, "nvrtcGetErrorString")?,
                log: (function(library, "nvrtcGetProgramLogSize")?, function(library, "nvrtcGetProgramLog")?),
                ptx: (function(library, "nvrtcGetPTXSize")?, function(library, "nvrtcGetPTX")?),
                cubin: (function(library, "nvrtcGetCUBINSize")?, function(library, "nvrtcGetCUBIN")?),
            }
        };
        // nvrtcVersion knows no patch level, and a library whose builtins are missing opens like any other: ask it to
        // compile something and look at what it wrote.
        let probe =
            Unit::new("probe", "extern \"C\" __global__ void probe() {}", &[]).map_err(|e| e.to_string())?;
        let run = nvrtc.run(&probe, &["--gpu-architecture=compute_80".into()]).map_err(|e| e.to_string())?;
        nvrtc.version = ptx::version(&run.ptx).ok_or("its PTX names no version")?.to_owned();
        Ok(nvrtc)
    }

    /// E.g. `13.0.88`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Compiles. The cubin is empty unless the options name a real architecture.
    pub(crate) fn run(&self, unit: &Unit, options: &[String]) -> Result<Run, NvrtcError> {
        let failed = |call, status| NvrtcError::Failed {
            source_name: unit.name.clone(),
            call,
            why: self.words(status),
        };
        let checked = |call, status| if status == SUCCESS { Ok(()) } else { Err(failed(call, status)) };

        let options: Vec<CString> =
            options.iter().map(|option| CString::new(option.as_str())).collect::<Result<_, _>>().map_err(
                |_| NvrtcError::Input { source_name: unit.name.clone(), what: "a macro".to_owned() },
            )?;
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (names, texts, options) =
            (pointers(&unit.header_names), pointers(&unit.header_texts), pointers(&options));

        let mut program = Owned { program: ptr::null_mut(), nvrtc: self };
        // SAFETY: all strings end in NUL and outlive the program; the arrays have as many elements as said.
        let status = unsafe {
            (self.create)(
                &mut program.program,
                unit.text.as_ptr(),
                unit.file.as_ptr(),
                texts.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        checked("nvrtcCreateProgram", status)?;
        // SAFETY: the program was created; `options` has as many elements as said.
        let status = unsafe { (self.compile)(program.program, options.len() as c_int, options.as_ptr()) };
        let log = text(self.fetch(program.program, &self.log).map_err(|s| failed("nvrtcGetProgramLog", s))?);
        if status == COMPILATION {
            return Err(NvrtcError::Compile { source_name: unit.name.clone(), arch: String::new(), log });
        }
        if status != SUCCESS {
            let why = format!("{} {log}", self.words(status)).trim_end().to_owned();
            return Err(NvrtcError::Failed {
                source_name: unit.name.clone(),
                call: "nvrtcCompileProgram",
                why,
            });
        }
        let ptx = text(self.fetch(program.program, &self.ptx).map_err(|s| failed("nvrtcGetPTX", s))?);
        let cubin = self.fetch(program.program, &self.cubin).map_err(|s| failed("nvrtcGetCUBIN", s))?;
        Ok(Run { log, ptx, cubin })
    }

    fn fetch(&self, program: Program, calls: &(Symbol<SizeOf>, Symbol<Fetch>)) -> Result<Vec<u8>, Status> {
        let mut size = 0;
        // SAFETY: the program was created and compiled.
        let status = unsafe { (calls.0)(program, &mut size) };
        if status != SUCCESS {
            return Err(status);
        }
        let mut bytes = vec![0u8; size];
        if size > 0 {
            // SAFETY: the buffer has the size that NVRTC asked for.
            let status = unsafe { (calls.1)(program, bytes.as_mut_ptr().cast()) };
            if status != SUCCESS {
                return Err(status);
            }
        }
        Ok(bytes)
    }

    fn words(&self, status: Status) -> String {
        // SAFETY: NVRTC answers any number with a constant string.
        let words = unsafe { (self.error)(status) };
        if words.is_null() {
            return format!("error {status}");
        }
        // SAFETY: not null, and a constant string of the library.
        unsafe { CStr::from_ptr(words) }.to_string_lossy().into_owned()
    }
}

/// A program that is destroyed when it goes.
struct Owned<'a> {
    program: Program,
    nvrtc: &'a Nvrtc,
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: created, and destroyed here alone.
            unsafe { (self.nvrtc.destroy)(&mut self.program) };
        }
    }
}

fn text(bytes: Vec<u8>) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Opens a library for good: NVRTC keeps threads and state that closing would pull the code from under.
fn load(path: &Path) -> Result<ManuallyDrop<Library>, String> {
    // SAFETY: NVIDIA's compiler, or what the user put in its place: running its initialisers is what opening means.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
        .map(ManuallyDrop::new)
        .map_err(|e| e.to_string())
}

/// The builtins beside a library.
fn builtins(library: &Path) -> Vec<PathBuf> {
    let Some(entries) = library.parent().and_then(|folder| fs::read_dir(folder).ok()) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libnvrtc-builtins.so"))
        })
        .collect();
    found.sort();
    found
}
