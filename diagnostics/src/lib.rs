//! Faults by kind, exit codes and how both programs report them.
