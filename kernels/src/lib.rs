//! Kernel families: contract, CPU code per ISA, reference, cases.
