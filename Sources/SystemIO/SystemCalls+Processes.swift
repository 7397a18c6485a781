import CLinux
import Glibc
import SystemPackage

/// Processes, signals and waiting.
extension SystemCall {
  /// Starts a program with nothing on its standard input and its standard output on a pipe.
  /// - Parameters:
  ///   - output: the pipe's writing end
  ///   - isAlone: whether it leads a group of processes of its own
  ///   - readsErrors: whether its standard error goes to the pipe as well
  /// - Returns: its process id
  static func spawn(
    _ path: String, arguments: [String], environment: [String: String], output: borrowing Descriptor,
    isAlone: Bool, readsErrors: Bool
  ) throws(Errno) -> pid_t {
    var actions = unsafe posix_spawn_file_actions_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    unsafe posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
    unsafe posix_spawn_file_actions_adddup2(&actions, output.number, STDOUT_FILENO)
    if readsErrors { unsafe posix_spawn_file_actions_adddup2(&actions, output.number, STDERR_FILENO) }
    // Ours are closed by themselves. Those of libraries need not be, and whoever waits for the end of a connection would
    // wait for the child's.
    unsafe close_in_child(&actions, STDERR_FILENO + 1)

    // What this process has turned off, the child takes as it comes: what is ignored or blocked stays so in a new
    // program.
    var attributes = posix_spawnattr_t()
    unsafe posix_spawnattr_init(&attributes)
    defer { unsafe posix_spawnattr_destroy(&attributes) }
    var (all, none) = (sigset_t(), sigset_t())
    unsafe sigfillset(&all)
    unsafe sigemptyset(&none)
    unsafe posix_spawnattr_setsigdefault(&attributes, &all)
    unsafe posix_spawnattr_setsigmask(&attributes, &none)
    // Group 0 is a new one, by the process's own number.
    unsafe posix_spawnattr_setflags(
      &attributes,
      Int16(POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | (isAlone ? POSIX_SPAWN_SETPGROUP : 0)))

    var process = pid_t()
    let code = unsafe withCStrings([path] + arguments) { argv in
      unsafe withCStrings(environment.map { "\($0.key)=\($0.value)" }) { envp in
        unsafe posix_spawn(&process, path, &actions, &attributes, argv, envp)
      }
    }
    guard code == 0 else { throw Errno(rawValue: code) }
    return process
  }

  private static func withCStrings<Result>(
    _ strings: [String], _ body: (UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> Result
  ) -> Result {
    var copies: [UnsafeMutablePointer<CChar>?] = unsafe strings.map { unsafe strdup($0) } + [nil]
    defer { unsafe copies.forEach { unsafe free($0) } }
    return unsafe copies.withUnsafeMutableBufferPointer { buffer in
      guard let start = buffer.baseAddress else { preconditionFailure("an array with an end mark") }
      return unsafe body(start)
    }
  }

  /// Waits for a child's end.
  /// - Returns: its wait status
  static func wait(for process: pid_t) throws(Errno) -> Int32 {
    var status: Int32 = 0
    try retrying { unsafe waitpid(process, &status, 0) }
    return status
  }

  /// - Returns: a child's wait status; nil while it runs
  static func statusIfEnded(of process: pid_t) throws(Errno) -> Int32? {
    var status: Int32 = 0
    return try retrying { unsafe waitpid(process, &status, WNOHANG) } == 0 ? nil : status
  }

  static func kill(_ process: pid_t, _ signal: Int32) throws(Errno) {
    try retrying { Glibc.kill(process, signal) }
  }

  /// Has `handler` called for a signal, on whatever thread; it may call nothing but what is safe there.
  ///
  /// This thread takes the signal from now on, even if whoever started the program has blocked it.
  static func handle(_ signal: Int32, _ handler: @escaping @convention(c) (Int32) -> Void) throws(Errno) {
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_handler = handler
    action.sa_flags = SA_RESTART
    try retrying { unsafe sigaction(signal, &action, nil) }
    var signals = sigset_t()
    unsafe sigemptyset(&signals)
    unsafe sigaddset(&signals, signal)
    unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil)
  }

  /// Gives a signal its default action back.
  static func handleByDefault(_ signal: Int32) {
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_handler = SIG_DFL
    _ = unsafe sigaction(signal, &action, nil)
  }

  static func makeNonBlocking(_ descriptor: Int32) throws(Errno) {
    let flags = try retrying { fcntl(descriptor, F_GETFL) }
    try retrying { fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) }
  }

  /// Has the kernel end this process when the thread that started it ends.
  static func endWithParent() throws(Errno) {
    try retrying { end_with_parent() }
  }
}
