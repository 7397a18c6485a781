import Benchmark

/// All parts of the engine whose speed is kept in view, each beside the machine's own rate of dense products.
let benchmarks: @Sendable () -> Void = {
  let suite = Suite(threads: Surroundings.threads)
  suite.addProducts()
  suite.addDecoder()
  suite.addGramMatrices()
  suite.addSolvers()
  suite.addActivationCache()
  suite.addPacking()
}
