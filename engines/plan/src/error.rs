//! What can be wrong with a plan file, by fault.

use std::io;
use std::path::PathBuf;

use crate::codec::CodecError;
use crate::verify::VerifyError;

/// An error of reading or writing a plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The system refused an operation.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// What was tried, e.g. `cannot open`.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Something else than an engine plan.
    #[error("{}: this is {what}, not an engine plan", path.display())]
    Foreign {
        /// File.
        path: PathBuf,
        /// What it looks like, with its article.
        what: &'static str,
    },
    /// A format version that this build does not read.
    #[error(
        "{}: plan format {}.{} (written by {producer}) cannot be read by this build, which reads {reads}; \
         recompile with `{command}`",
        path.display(), found.0, found.1
    )]
    Version {
        /// File.
        path: PathBuf,
        /// Major and minor version of the file.
        found: (u16, u16),
        /// Versions that this build reads.
        reads: String,
        /// Compiler that wrote it.
        producer: String,
        /// The command that makes a readable plan of the same checkpoint.
        command: String,
    },
    /// The bytes are not what the compiler wrote.
    #[error("{}: {fault}; copy or compile the plan again", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        fault: Damage,
    },
    /// The tables are intact but do not make sense.
    #[error("{}: {fault}", path.display())]
    Invalid {
        /// File.
        path: PathBuf,
        /// The first thing that does not hold.
        fault: Box<VerifyError>,
    },
    /// The file shrank while it was mapped.
    #[error("{}: the plan was truncated while in use: it had {had} bytes and has {has}; restart with an intact plan", path.display())]
    Truncated {
        /// File.
        path: PathBuf,
        /// Bytes when it was opened.
        had: u64,
        /// Bytes now.
        has: u64,
    },
    /// The file was written to while it was mapped.
    #[error("{}: the plan was written to while in use; restart, and replace plans by renaming over them", path.display())]
    Modified {
        /// File.
        path: PathBuf,
    },
    /// The disk cannot hold the plan.
    #[error("{}: the plan needs {need} bytes and the disk has {free} free; free some or write elsewhere with -o", path.display())]
    DiskFull {
        /// Where it was to be written.
        path: PathBuf,
        /// Bytes of the plan, at most.
        need: u64,
        /// Bytes that are free to this user.
        free: u64,
    },
    /// The writer was used wrongly; a bug of the compiler.
    #[error("plan writer: {what}")]
    Writer {
        /// What was done.
        what: String,
    },
}

/// What is wrong with bytes that begin as a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file ends inside the header.
    #[error("the header is cut off: the file has {have} bytes, the header needs {need}")]
    HeaderCut {
        /// Bytes needed.
        need: u64,
        /// Bytes of the file.
        have: u64,
    },
    /// The header's length is impossible.
    #[error("the header says that it has {bytes} bytes; possible are {least} to {most}")]
    HeaderLength {
        /// What it says.
        bytes: u64,
        /// Smallest possible.
        least: u64,
        /// Largest possible.
        most: u64,
    },
    /// Producer or flags are not UTF-8.
    #[error("the header's {field} is not UTF-8")]
    HeaderText {
        /// Which field.
        field: &'static str,
    },
    /// The header's hash does not match.
    #[error("the header does not match its hash")]
    HeaderHash,
    /// A section with flag bits that mean nothing.
    #[error("section {tag} has unknown flags {flags:#x}")]
    SectionFlags {
        /// Section.
        tag: String,
        /// Its flags.
        flags: u16,
    },
    /// A section that is marked as required and that this build does not know.
    #[error("section {tag} version {version} is required and unknown to this build")]
    SectionUnknown {
        /// Section.
        tag: String,
        /// Its version.
        version: u16,
    },
    /// The same section twice.
    #[error("section {tag} occurs twice")]
    SectionTwice {
        /// Section.
        tag: String,
    },
    /// A section that every plan has.
    #[error("section {tag} is missing")]
    SectionMissing {
        /// Section.
        tag: &'static str,
    },
    /// A section at an offset that is not a multiple of its alignment.
    #[error("section {tag} at {offset} is not a multiple of {align}")]
    SectionAlignment {
        /// Section.
        tag: String,
        /// Where it is.
        offset: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// A section that shares bytes with another or with the header.
    #[error("section {tag} at {offset} overlaps what comes before it")]
    SectionOverlap {
        /// Section.
        tag: String,
        /// Where it is.
        offset: u64,
    },
    /// The file ends inside a section.
    #[error("the file is cut off: it has {have} bytes, section {tag} needs {need}")]
    SectionCut {
        /// Section.
        tag: String,
        /// End of the section.
        need: u64,
        /// Bytes of the file.
        have: u64,
    },
    /// Bytes after the last section.
    #[error("{extra} bytes follow the last section")]
    Trailing {
        /// Their number.
        extra: u64,
    },
    /// A section's bytes do not match its hash.
    #[error("section {tag} does not match its hash")]
    SectionHash {
        /// Section.
        tag: &'static str,
    },
    /// A table that does not decode.
    #[error("section {tag}: {fault}")]
    Table {
        /// Section.
        tag: &'static str,
        /// Why.
        fault: CodecError,
    },
    /// A copy of a card field in the header that differs from the card.
    #[error("the header's {field} is not the card's")]
    HeaderCard {
        /// Which field.
        field: &'static str,
    },
    /// A weight's bytes do not match its hash.
    #[error("weight {name} does not match its hash")]
    WeightHash {
        /// Weight.
        name: String,
    },
}
