import Quantization

/// The ridge of a solver's problems: what is added to Σ's diagonal, as a share of its mean.
public enum Damping: Sendable, Hashable {
  case share(Float)
  /// What brings the whole model closest to the original. A ridge keeps the solver from moving errors into directions that
  /// the calibration set has hardly shown, but at 2 bits the errors are so large that they have to go somewhere:
  /// docs/SOLVER.md, "The ridge", has the figures.
  case automatic

  func share(for format: GridFormat, besideOutliers: Bool = false) -> Float {
    switch self {
    case .share(let share): share
    case .automatic: format.bitWidth == .two && !besideOutliers ? 0.01 : 0.1
    }
  }
}
