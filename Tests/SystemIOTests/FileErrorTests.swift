import SystemIO
import SystemPackage
import Testing

@Suite struct FileErrorTests {
  @Test(arguments: [
    (FileOperation.write, Errno.noSpace, Int32(75)),
    (.create, .fileExists, 73),
    (.create, .readOnlyFileSystem, 73),
    (.create, .noSuchFileOrDirectory, 73),
    (.open, .noSuchFileOrDirectory, 66),
    (.open, .permissionDenied, 77),
    (.rename, .notPermitted, 77),
    (.read, .ioError, 74),
    (.open, .tooManyOpenFiles, 74),
  ])
  func `an error has the exit status of sysexits and a mend`(
    operation: FileOperation, errno: Errno, exitCode: Int32
  ) {
    let error = FileError(path: "/models/x", operation: operation, errno: errno)
    #expect(error.exitCode == exitCode)
    #expect(error.mend != nil)
    #expect(error.description.contains("/models/x"))
  }

  @Test func `a full disk says to free space`() {
    let error = FileError(path: "/out/model.safetensors", operation: .reserve, errno: .noSpace)
    #expect(
      error.description
        == "cannot reserve space for /out/model.safetensors: No space left on device; "
        + "free space on that file system, or choose a path on another one")
  }
}
