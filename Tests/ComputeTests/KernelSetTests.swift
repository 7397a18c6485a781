import Testing

@testable import ComputeOpenBLAS

struct KernelSetTests {
  typealias Case = (current: String, processorLevel: Int, isSound: Bool, tried: [String], expected: String?)

  private static let cases: [Case] = [
    // What an old library takes on a processor that it does not know.
    ("Prescott", 4, true, [], "SkylakeX"),
    ("Prescott", 3, true, [], "Haswell"),
    ("Core2", 2, true, [], "Sandybridge"),
    ("Haswell", 4, true, [], "SkylakeX"),
    // Right as it is.
    ("SkylakeX", 4, true, [], nil),
    ("Cooperlake", 4, true, [], nil),
    ("Zen", 3, true, [], nil),
    ("Prescott", 1, true, [], nil),
    // A library that does not have the set asked for, and one that goes on taking another.
    ("Prescott", 4, true, ["SkylakeX"], "Haswell"),
    ("Prescott", 4, true, ["SkylakeX", "Haswell", "Sandybridge"], nil),
    // Wrong values: the next older one.
    ("Cooperlake", 4, false, [], "SkylakeX"),
    ("SkylakeX", 4, false, ["SkylakeX"], "Haswell"),
    ("Haswell", 4, false, ["SkylakeX", "Haswell"], "Sandybridge"),
    ("Prescott", 4, false, ["SkylakeX", "Haswell", "Sandybridge", "Prescott"], nil),
    // Names that nobody here knows.
    ("POWER9", 0, true, [], nil),
    ("Zen9", 4, true, [], nil),
  ]

  @Test(arguments: cases)
  func `the newest set that the processor has and that computes right is asked for`(_ example: Case) {
    let replacement = KernelSet(example.current).replacement(
      processorLevel: example.processorLevel, isSound: example.isSound, tried: example.tried)
    #expect(replacement?.name == example.expected)
  }

  typealias Warning = (
    set: String, processorLevel: Int, isSound: Bool, isChosen: Bool, unsound: [String], expected: String?
  )

  private static let warnings: [Warning] = [
    ("SkylakeX", 4, true, false, [], nil),
    ("POWER9", 0, true, false, [], nil),
    (
      "Haswell", 4, true, true, [],
      "older than this processor and slow on it; unset OPENBLAS_CORETYPE, or take"
    ),
    ("Haswell", 4, true, false, [], "older than this processor and slow on it; take a newer version"),
    (
      "Haswell", 4, true, false, ["SkylakeX"],
      "wrong values with its SkylakeX kernels on this processor; those named Haswell"
    ),
    (
      "SkylakeX", 4, true, false, ["Cooperlake"], "wrong values with its Cooperlake kernels on this processor"
    ),
    (
      "Prescott", 4, false, false, ["Haswell"],
      "wrong values with its Prescott kernels; set OPENBLAS_CORETYPE"
    ),
  ]

  @Test(arguments: warnings)
  func `what is wrong with a set is said with what mends it`(_ example: Warning) {
    let warning = KernelSet(example.set).warning(
      processorLevel: example.processorLevel, isSound: example.isSound, isChosen: example.isChosen,
      unsound: example.unsound)
    #expect(
      example.expected.map { warning?.contains($0) == true } ?? (warning == nil), "\(warning ?? "nothing")")
  }

  @Test func `the kernels in use have a name, and compute right`() {
    #expect(!KernelSet.current.name.isEmpty && KernelSet.current != KernelSet("unknown"))
    #expect(OpenBLASBackend(threads: 1).computesRight)
  }
}
