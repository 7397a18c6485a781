import Glibc

/// Real time, for what happens on other threads.
enum Pause {
  static func milliseconds(_ count: UInt32) { usleep(count * 1000) }
}
