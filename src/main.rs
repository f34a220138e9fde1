//! The `shoal` program; everything is in the library beside it.

/// A shard's memory grows and shrinks with its segments for weeks; this allocator gives back what
/// they leave, and serves the C++ and C libraries too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    shoal::cli::main()
}
