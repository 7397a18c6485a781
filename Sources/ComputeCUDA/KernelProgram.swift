import CCUDA
import Glibc

/// The project's kernels, compiled by NVRTC for the GPU that is there. What it comes to is kept on disk.
enum KernelProgram {
  /// The sources, one program.
  static let source = [
    PackageResources.Common_cu, PackageResources.Elementwise_cu, PackageResources.Rows_cu,
    PackageResources.Attention_cu, PackageResources.Triangles_cu, PackageResources.Grids_cu,
    PackageResources.Descent_cu, PackageResources.Pairs_cu, PackageResources.Outliers_cu,
  ].map { String(decoding: $0, as: UTF8.self) }.joined(separator: "\n")

  /// Every kernel, by the name that its source has.
  enum Kernel: String, CaseIterable {
    case add, scale, softcap, clamp, add_bias, activate, activate_gate, clamped_swiglu, xielu,
      to_bfloat16_rows
    case to_bytes, from_bytes, set_heads, rotate, keep_states, convert_stored
    case find_unsound
    case normalize, negative_log_likelihood, divergence, row_dots, add_column_sums
    case causal_softmax, causal_convolution, gated_delta_rule
    case get_diagonal, set_diagonal, symmetrize, fill_upper, divide_upper_rows, copy_block, add_lower
    case factorize_block, subtract_squares, exchange_columns
    case round_to_grid, dequantize, rounding_remainders, row_objectives, search_grid
    case group_steps, refit_group, unit_steps, refit_unit, refit_row
    case descend_block, nearest_plane_block
    case most_correlated, count_movers, descend_singles, descend_pairs
    case descend_outliers, mark_places, add_sparse, gather_sparse, clear_sparse, round_outliers,
      multiply_sampled
    case weigh_squares, count_at_least, collect_at_least
  }

  /// The program for an architecture, from the cache or compiled anew.
  /// - Throws: ``CUDAError/cannotCompile(log:)``
  /// - Parameter isAnew: passes over what the cache has, which may be damaged
  static func image(
    for architecture: String, isAnew: Bool = false, _ libraries: CUDALibraries
  ) throws(CUDAError) -> [CChar] {
    guard libraries.keepsKernels else { return try compile(for: architecture, libraries) }
    let key = "kernels-\(architecture)-nvrtc\(libraries.compilerVersion)-\(source.fnv1a).cubin"
    let cache = KernelCache()
    if !isAnew, let known = cache.read(key) { return known }
    let image = try compile(for: architecture, libraries)
    cache.write(image, key)
    return image
  }

  /// - Throws: ``CUDAError/cannotCompile(log:)``
  private static func compile(for architecture: String, _ libraries: CUDALibraries) throws(CUDAError)
    -> [CChar]
  {
    let calls = unsafe libraries.calls.pointee
    var program: OpaquePointer?
    guard unsafe calls.nvrtcCreateProgram(&program, source, "kernels.cu", 0, nil, nil) == 0,
      let program = unsafe program
    else { throw .cannotCompile(log: "NVRTC makes no program") }
    defer {
      var program: OpaquePointer? = unsafe program
      _ = unsafe calls.nvrtcDestroyProgram(&program)
    }
    let options = ["--gpu-architecture=\(architecture)", "--std=c++17"]
    let result = unsafe options.withCStrings {
      unsafe calls.nvrtcCompileProgram(program, Int32(options.count), $0)
    }
    var size = 0
    guard result == 0 else {
      _ = unsafe calls.nvrtcGetProgramLogSize(program, &size)
      var log = [CChar](repeating: 0, count: size + 1)
      _ = unsafe calls.nvrtcGetProgramLog(program, &log)
      throw .cannotCompile(log: "\(calls.compilerWords(of: result)) \(log.text)")
    }
    guard unsafe calls.nvrtcGetCUBINSize(program, &size) == 0, size > 0 else {
      throw .cannotCompile(log: "NVRTC does not know \(architecture)")
    }
    var image = [CChar](repeating: 0, count: size)
    _ = unsafe calls.nvrtcGetCUBIN(program, &image)
    return image
  }
}

/// Compiled kernels, in the user's cache. What cannot be kept is compiled again.
private struct KernelCache {
  /// systemd names the first for services.
  private let folder =
    (environment("CACHE_DIRECTORY") ?? environment("XDG_CACHE_HOME")).map { "\($0)/quantease" }
    ?? environment("HOME").map { "\($0)/.cache/quantease" }

  func read(_ key: String) -> [CChar]? {
    guard let folder, let file = unsafe fopen("\(folder)/\(key)", "rb") else { return nil }
    defer { unsafe fclose(file) }
    _ = unsafe fseek(file, 0, SEEK_END)
    let size = unsafe ftell(file)
    guard size > 0 else { return nil }
    unsafe rewind(file)
    var image = [CChar](repeating: 0, count: size)
    return unsafe fread(&image, 1, size, file) == size ? image : nil
  }

  func write(_ image: [CChar], _ key: String) {
    guard let folder else { return }
    unsafe mkdir(folder, 0o755)
    let path = "\(folder)/\(key)"
    let draft = "\(path).\(getpid())"
    guard let file = unsafe fopen(draft, "wb") else { return }
    let isWhole = unsafe fwrite(image, 1, image.count, file) == image.count
    let isClosed = unsafe fclose(file) == 0
    if !isClosed || !isWhole || (unsafe rename(draft, path)) != 0 { unsafe unlink(draft) }
  }
}

extension qe_cuda_libraries {
  fileprivate func compilerWords(of result: Int32) -> String {
    unsafe String(cString: nvrtcGetErrorString(result))
  }
}

extension String {
  /// The 64-bit Fowler–Noll–Vo hash: enough to tell versions of a source apart.
  fileprivate var fnv1a: String {
    let hash = utf8.reduce(0xcbf2_9ce4_8422_2325 as UInt64) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
    return String(hash, radix: 16)
  }
}
