import Glibc
import SystemPackage

extension FileSystem {
  /// Moves a file or a directory within its file system, and waits until both directories are on the disk.
  /// - Throws: ``FileError``, EEXIST if there is something at `destination`, EXDEV if that is on another
  ///   file system. A failure to synchronize leaves the move done.
  public static func move(_ source: String, to destination: String) throws(FileError) {
    do {
      if try !SystemCall.renameWithoutReplacing(source, to: destination) {
        // A look and a rename are two steps. Spools have one writer, so nothing comes between.
        guard try kind(of: destination, symlinks: .refuse) == nil else { throw Errno.fileExists }
        try SystemCall.rename(source, to: destination)
      }
    } catch let error as FileError {
      throw error
    } catch {
      throw moveError(error as? Errno ?? .ioError, source, destination)
    }
    let parents = (parent(of: source), parent(of: destination))
    try synchronizeDirectory(parents.1)
    if parents.0 != parents.1 { try synchronizeDirectory(parents.0) }
  }

  private static func moveError(_ errno: Errno, _ source: String, _ destination: String) -> FileError {
    // ENOENT is said of either side.
    if errno == .noSuchFileOrDirectory, (try? exists(source)) == false {
      return FileError(path: source, operation: .inspect, errno: errno)
    }
    // A directory that gets another parent is written to itself, as its `..` changes: where that is not allowed, the
    // fault is not the destination's.
    if errno == .permissionDenied || errno == .notPermitted, SystemCall.mayWrite(parent(of: destination)) {
      return FileError(path: source, operation: .rename, errno: errno)
    }
    return FileError(path: destination, operation: .rename, errno: errno)
  }

  /// What is at `path`, and its stamp: the link itself, unless links are followed.
  /// - Throws: ``FileError``, ENOENT if nothing is.
  public static func stamp(
    of path: String, symlinks: SymlinkPolicy = .refuse
  ) throws(FileError) -> (stamp: FileStamp, kind: FileKind) {
    try FileError.attempt(.inspect, path) { () throws(Errno) in
      try SystemCall.stamp(path, symlinks: symlinks)
    }
  }

  /// Whether this process may read the file, or list the directory, at `path`, as far as the kernel tells without
  /// opening it.
  public static func isReadable(_ path: String, isDirectory: Bool = false) -> Bool {
    SystemCall.mayRead(path, isDirectory: isDirectory)
  }

  /// Whether this process may make and remove names in a directory.
  public static func isWritable(_ directory: String) -> Bool { SystemCall.mayWrite(directory) }

  /// The name of the group that `path` belongs to; nil if its number has none.
  public static func groupName(of path: String) -> String? {
    (try? SystemCall.group(of: path)).flatMap { UserDatabase.groupName($0) }
  }

  /// Whether nobody has the file at `path` open for writing, or mapped so.
  /// - Returns: Nil where the kernel does not tell: not our file, not a regular one, or a file system without
  ///   leases.
  public static func hasNoWriter(_ path: String) -> Bool? {
    guard let descriptor = try? SystemCall.open(path, flags: O_RDONLY | O_NONBLOCK | O_NOFOLLOW) else {
      return nil
    }
    return SystemCall.hasNoWriter(descriptor)
  }

  /// Whether `path` is on a file system that others may write to behind this kernel's back, where inotify,
  /// leases and times tell little: the network's, and FUSE.
  public static func isNetworked(_ path: String) throws(FileError) -> Bool {
    let type = try FileError.attempt(.inspect, path) { () throws(Errno) in
      try SystemCall.fileSystemType(path)
    }
    return networkedTypes.contains(type)
  }

  /// Numbers of linux/magic.h and of each file system's own source.
  private static let networkedTypes: Set<UInt32> = [
    0x0000_6969,  // NFS
    0x0000_517B, 0xFE53_4D42, 0xFF53_4D42,  // SMB, SMB2, CIFS
    0x6573_5546,  // FUSE, and with it sshfs, rclone, GlusterFS, virtiofs
    0x0102_1997,  // 9p
    0x00C3_6400,  // Ceph
    0x5346_414F, 0x6B41_4653,  // AFS
    0x7375_7245,  // Coda
    0x0BD0_0BD0,  // Lustre
    0x1983_0326,  // BeeGFS
    0x4750_4653,  // GPFS
    0x0116_1970,  // GFS2
    0x7461_636F,  // OCFS2
    0x2003_0528,  // OrangeFS
    0x786F_4256, 0xBACB_ACBC, 0x7C7C_6673,  // shared folders of VirtualBox, VMware and Parallels
  ]
}
