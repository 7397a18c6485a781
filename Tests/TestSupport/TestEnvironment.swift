import Glibc

/// What the tests learn from their surroundings.
public enum TestEnvironment {
  public static var temporaryDirectory: String { variable("TMPDIR") ?? "/tmp" }

  /// The value of an environment variable; nil if it is not set or empty.
  public static func variable(_ name: String) -> String? {
    guard let value = unsafe getenv(name) else { return nil }
    let text = unsafe String(cString: value)
    return text.isEmpty ? nil : text
  }
}
