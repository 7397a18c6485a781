/// What the kernel calls this start of the machine: what was written before it may not have reached the disk.
public enum MachineStart {
  /// A few characters of it. A service may see nothing of /proc but processes; its unit then passes it on. Where nobody
  /// knows, each process has one of its own.
  public static var mark: String {
    let name =
      ProcessEnvironment.process.value("QUANTEASE_BOOT_ID")
      ?? (try? FileSystem.contents(of: "/proc/sys/kernel/random/boot_id", limit: 128)).map {
        String(decoding: $0, as: UTF8.self)
      } ?? "process \(ThisProcess.identifier)"
    return String(name.filter { $0.isLetter || $0.isNumber }.prefix(8))
  }
}
