//! Device kernels against their references, on any driver.
