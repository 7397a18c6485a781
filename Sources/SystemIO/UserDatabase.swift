import Glibc

/// Whom others have to open their files to for this process to read them.
public enum UserDatabase {
  public static var userIdentifier: UInt32 { geteuid() }

  /// The name of the process's group; nil if its number has none.
  public static var ownGroupName: String? { groupName(getegid()) }

  static func groupName(_ number: UInt32) -> String? {
    // Nobody else in these programs asks for groups, so the library's one answer is this call's.
    guard let entry = unsafe getgrgid(number), let name = unsafe entry.pointee.gr_name else { return nil }
    return unsafe String(cString: name)
  }
}
