fn main() {
    // The addon looks up the functions of Node.js when it is loaded (`dyn-symbols` of napi). For macOS
    // and Windows, napi-build would also have the linker look for them.
    let system = std::env::var("CARGO_CFG_TARGET_OS");
    if !matches!(system.as_deref(), Ok("macos" | "windows")) {
        napi_build::setup();
    }
}
