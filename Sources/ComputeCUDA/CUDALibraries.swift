import CCUDA
import Glibc

/// CUDA's libraries, opened at run time: no program needs them to start, or to be built.
///
/// The driver is the system's. NVRTC and cuBLAS are looked for in the folder that `QUANTEASE_CUDA_PATH` names, in those of a
/// toolkit, by the loader's own search, and in the Python environments that their wheels are installed in.
@safe public final class CUDALibraries: @unchecked Sendable {
  /// The calls; whoever makes one checks its result.
  @unsafe let calls: UnsafeMutablePointer<qe_cuda_libraries>
  /// Where cuBLAS lies; empty for the loader's own search.
  public let folder: String
  /// Whether what NVRTC compiles is worth keeping on disk.
  let keepsKernels: Bool

  /// What this machine has.
  /// - Throws: ``CUDAError`` for what is missing
  public static func open() throws(CUDAError) -> CUDALibraries {
    try CUDALibraries(folders: searchedFolders)
  }

  /// Functions that somebody else has: those of tests.
  public init(filledBy fill: (UnsafeMutablePointer<qe_cuda_libraries>) -> Void) {
    unsafe calls = Self.allocate()
    folder = ""
    keepsKernels = false
    unsafe fill(calls)
  }

  private init(folders: [String]) throws(CUDAError) {
    (unsafe calls, folder) = try unsafe Self.opened(in: folders)
    keepsKernels = true
  }

  /// The calls, and the folder of cuBLAS.
  private static func opened(
    in folders: [String]
  ) throws(CUDAError) -> (UnsafeMutablePointer<qe_cuda_libraries>, String) {
    let calls = unsafe allocate()
    var message = [CChar](repeating: 0, count: 512)
    var folder = 0
    var error: CUDAError?
    if unsafe qe_cuda_open_driver(calls, &message) != qe_cuda_opened {
      error = .noDriver(message.text)
    } else {
      let missing = unsafe folders.withCStrings { names -> CUDAError.Library? in
        if unsafe qe_cuda_open_nvrtc(names, folders.count, calls, &message) != qe_cuda_opened {
          return .nvrtc
        }
        return unsafe qe_cuda_open_cublas(names, folders.count, calls, &message, &folder) == qe_cuda_opened
          ? nil : .cublas
      }
      if let missing { error = .noLibrary(missing, message.text) }
    }
    if let error {
      unsafe calls.deallocate()
      throw error
    }
    return unsafe (calls, folders[folder])
  }

  deinit { unsafe calls.deallocate() }

  /// NVRTC's version.
  var compilerVersion: String {
    var (major, minor): (Int32, Int32) = (0, 0)
    _ = unsafe calls.pointee.nvrtcVersion(&major, &minor)
    return "\(major).\(minor)"
  }

  private static func allocate() -> UnsafeMutablePointer<qe_cuda_libraries> {
    let calls = UnsafeMutablePointer<qe_cuda_libraries>.allocate(capacity: 1)
    unsafe memset(calls, 0, MemoryLayout<qe_cuda_libraries>.size)
    return unsafe calls
  }

  /// The folders that are searched, in order.
  private static var searchedFolders: [String] {
    var folders: [String] = []
    if let named = environment("QUANTEASE_CUDA_PATH"), !named.isEmpty {
      folders += [named, "\(named)/lib64", "\(named)/lib"] + wheels(inEnvironment: named)
    }
    folders += ["/usr/local/cuda/lib64", ""]
    if let home = environment("HOME") {
      folders += wheels(inEnvironment: "\(home)/.local/share/quantease/cuda")
    }
    folders += wheels(inEnvironment: "/usr/local/lib/quantease/cuda")
    if let active = environment("VIRTUAL_ENV") { folders += wheels(inEnvironment: active) }
    return folders
  }

  /// Where NVIDIA's wheels lay their libraries in a Python environment.
  private static func wheels(inEnvironment environment: String) -> [String] {
    var matches = unsafe glob_t()
    defer { unsafe globfree(&matches) }
    guard unsafe glob("\(environment)/lib/python3*/site-packages/nvidia/*/lib", 0, nil, &matches) == 0 else {
      return []
    }
    return (0..<Int(unsafe matches.gl_pathc)).compactMap { index in
      unsafe matches.gl_pathv[index].map { unsafe String(cString: $0) }
    }
  }
}

/// A variable of the process's environment.
func environment(_ name: String) -> String? { unsafe getenv(name).map { unsafe String(cString: $0) } }

extension [String] {
  /// Lends the texts as C has them.
  func withCStrings<Result>(_ body: (UnsafePointer<UnsafePointer<CChar>?>) -> Result) -> Result {
    let texts = unsafe map { unsafe UnsafePointer<CChar>(strdup($0)) }
    defer { unsafe texts.forEach { unsafe free(UnsafeMutablePointer(mutating: $0)) } }
    return unsafe body(texts)
  }
}

extension [CChar] {
  /// What stands before the first zero.
  var text: String {
    String(decoding: prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}
