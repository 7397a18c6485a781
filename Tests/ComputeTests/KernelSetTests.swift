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

  @Test func `the kernels in use have a name, and compute right`() {
    #expect(!KernelSet.current.name.isEmpty && KernelSet.current != KernelSet("unknown"))
    #expect(OpenBLASBackend(threads: 1).computesRight)
  }
}
