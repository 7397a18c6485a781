import CKernels
import COpenBLAS
import SystemIO
import Tensors

/// A set of OpenBLAS's kernels, by the name that the library gives it.
///
/// The library chooses one when it is loaded, by a list of processors. One that is newer than the library is not on it and
/// gets the oldest set, in silence, at a fifth of its rate. Which set it takes can only be told beforehand, by a variable
/// of the environment.
public struct KernelSet: Equatable, Sendable {
  public let name: String

  public init(_ name: String) { self.name = name }

  /// The one in use.
  public static var current: KernelSet {
    guard let name = unsafe openblas_get_corename() else { return KernelSet("unknown") }
    return KernelSet(unsafe String(cString: name))
  }

  /// What it takes of x86-64, as ``processorLevel``; nil if the name is not one that is known here.
  var level: Int? {
    switch name.lowercased() {
    case "skylakex", "cooperlake", "sapphirerapids": 4
    case "haswell", "zen", "excavator": 3
    case "sandybridge", "bulldozer", "piledriver", "steamroller": 2
    case "prescott", "core2", "penryn", "dunnington", "nehalem", "atom", "nano", "opteron", "opteron_sse3",
      "barcelona",
      "bobcat", "katmai", "coppermine", "northwood", "banias":
      1
    default: nil
    }
  }

  /// 4 where the processor has AVX-512, 3 with AVX2, 2 with AVX, 1 with less; 0 on another architecture.
  static var processorLevel: Int { Int(qe_x86_level()) }

  /// Whether this processor has what it takes.
  public var runsHere: Bool { level.map { $0 <= Self.processorLevel } ?? false }

  /// Whether the processor could do more.
  public var isOlderThanProcessor: Bool { level.map { $0 < Self.processorLevel } ?? false }

  /// Those that are asked for, the newest first.
  private static let known = [
    KernelSet("SkylakeX"), KernelSet("Haswell"), KernelSet("Sandybridge"), KernelSet("Prescott"),
  ]

  /// The set to ask the library for in place of this one; nil if this one is right.
  /// - Parameters:
  ///   - isSound: whether this one computes what it should
  ///   - tried: what has been asked for already
  func replacement(processorLevel: Int, isSound: Bool, tried: [String]) -> KernelSet? {
    guard let level else { return nil }
    return Self.known.first { set in
      guard let other = set.level, other <= processorLevel, set != self, !tried.contains(set.name)
      else { return false }
      return isSound ? other > level : other <= level
    }
  }

  /// What is wrong with this set, where it is in use, and what mends it; nil if nothing is.
  /// - Parameters:
  ///   - isSound: whether it computes what it should
  ///   - isChosen: whether a person has asked for it
  ///   - unsound: the sets that it is taken in place of, as they compute wrong values
  func warning(processorLevel: Int, isSound: Bool, isChosen: Bool, unsound: [String]) -> String? {
    guard isSound else {
      return
        "OpenBLAS computes wrong values with its \(name) kernels; set \(Self.variable) to others, or take another "
        + "version of the library"
    }
    if !unsound.isEmpty {
      return
        "OpenBLAS computes wrong values with its \(unsound.joined(separator: " and ")) kernels on this processor; "
        + "those named \(name) are taken, which may be slower: take another version of the library"
    }
    guard let level, level < processorLevel else { return nil }
    return
      "OpenBLAS computes with its \(name) kernels, which are older than this processor and slow on it; "
      + "\(isChosen ? "unset \(Self.variable), or take" : "take") a newer version of the library"
  }

  // MARK: At the start of a program

  private static let variable = "OPENBLAS_CORETYPE"
  /// What has been asked for by ``useBest()``, so that it ends.
  private static let triedVariable = "QUANTEASE_KERNELS_TRIED"
  /// What has been found to compute wrong values by it.
  private static let unsoundVariable = "QUANTEASE_KERNELS_UNSOUND"

  private static func names(in variable: String) -> [String] {
    ProcessEnvironment.process.value(variable)?.split(separator: ",").map(String.init) ?? []
  }

  /// Whether the set in use computes what it should.
  private static let isSound = OpenBLASBackend(threads: 1).computesRight

  /// Has the library take the best set that the processor has and that computes right, by starting the program once more
  /// if it must. What a person has chosen stands. To be called before anything has begun.
  /// - Parameter begun: the set that a job was begun with, which is taken instead where the processor has it, whatever a
  ///   person has chosen: other kernels come to other bits
  public static func useBest(unless begun: KernelSet? = nil) {
    let tried = names(in: triedVariable)
    func use(_ set: KernelSet, unsound: [String] = []) {
      ThisProcess.restart(setting: [
        variable: set.name, triedVariable: (tried + [set.name]).joined(separator: ","),
        unsoundVariable: (names(in: unsoundVariable) + unsound).joined(separator: ","),
      ])
    }
    if let begun, begun.runsHere {
      if begun == current { return }
      // The library may not have it, and then takes another in silence.
      if !tried.contains(begun.name) { return use(begun) }
    }
    if tried.isEmpty && ProcessEnvironment.process.value(variable) != nil { return }
    if let better = current.replacement(processorLevel: processorLevel, isSound: isSound, tried: tried) {
      use(better, unsound: isSound ? [] : [current.name])
    }
  }

  /// What is wrong with the set in use, and what mends it; nil if nothing is.
  public static var warning: String? {
    current.warning(
      processorLevel: processorLevel, isSound: isSound, isChosen: names(in: triedVariable).isEmpty,
      unsound: names(in: unsoundVariable))
  }
}

extension OpenBLASBackend {
  /// A few products, a Gram matrix and a triangular solve of odd shapes, against plain sums: old versions of the library
  /// are known for wrong values on new processors.
  var computesRight: Bool {
    func numbers(_ rows: Int, _ columns: Int, _ step: Int) -> Matrix {
      Matrix(rows: rows, columns: columns, (0..<rows * columns).map { Float($0 * step % 23) / 23 - 0.5 })
    }
    func isClose(_ found: Matrix, _ expected: (Int, Int) -> Double, where isMeant: (Int, Int) -> Bool) -> Bool
    {
      (0..<found.rows).allSatisfy { row in
        (0..<found.columns).allSatisfy { column in
          !isMeant(row, column) || abs(Double(found[row, column]) - expected(row, column)) < 1e-3
        }
      }
    }
    let (a, b) = (numbers(37, 67, 7), numbers(67, 43, 5))
    let product = Matrix(rows: 37, columns: 43)
    product.whole.multiply(a.whole, b.whole, keeping: 0)
    let gram = Matrix(rows: 67, columns: 67)
    gram.whole.addGram(a.whole, to: .lower)
    let factor = numbers(43, 43, 11)
    for index in 0..<43 { factor[index, index] = 4 }
    let solved = product.copy()
    solved.whole.divide(by: factor.whole, transposed: false)
    return isClose(
      product, { row, column in (0..<67).reduce(0) { $0 + Double(a[row, $1]) * Double(b[$1, column]) } }
    ) {
      _, _ in true
    }
      && isClose(
        gram, { row, column in (0..<37).reduce(0) { $0 + Double(a[$1, row]) * Double(a[$1, column]) } }
      ) {
        $0 >= $1
      }
      // X R gives the product back.
      && isClose(
        product,
        { row, column in
          (0...column).reduce(0) { $0 + Double(solved[row, $1]) * Double(factor[$1, column]) }
        }
      ) { _, _ in true }
  }
}
