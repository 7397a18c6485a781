import ActivationCache
import Calibration
import Checkpoint
import Collective
import Compute
import Decoder
import Export
import Solvers
import SystemIO

/// The exit status of an error of the engine, by sysexits(3); nil for errors of others, such as those of the
/// command line itself, which the argument parser reports.
public func sysexit(of error: any Error) -> Int32? {
  switch error {
  case let error as FileError: error.exitCode
  case let error as any FormatError: error.exitCode
  case let error as CheckpointError: error.exitCode
  case let error as GGUFError: error.exitCode
  case let error as CalibrationError: error.exitCode
  case let error as ExportError: error.exitCode
  case let error as PackedCheckpointError: error.exitCode
  case let error as PipelineError: error.exitCode
  case let error as GGUFConversionError: error.exitCode
  case let error as CacheError: error.exitCode
  case let error as RankError: error.exitCode
  case is DecoderError, is JSONError, is SourceChange: 65
  case is RecipeError, is SettingsError: 64
  case SolverError.nonFiniteObjective: 65
  case is SolverError, is ComputeError: 70
  case is any DeviceError: 75
  default: nil
  }
}
