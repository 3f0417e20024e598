"""The contenders of the benchmarks: one file per library, one function per training run."""
