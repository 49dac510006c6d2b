//! CUDA C++ to cubin and PTX with NVRTC, and the cache of what it made.
