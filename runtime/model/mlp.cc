#include "runtime/model/mlp.h"

namespace moed::model {

void RunMlp(const MlpWeights& weights, const MlpActivations& activations,
            const backend::Tensor& input, const backend::Tensor& output, bool accumulate,
            backend::Backend& backend) {
  backend.Linear(*weights.gate_up, input, activations.gate_up, /*accumulate=*/false);
  backend.SwiGlu(activations.gate_up, activations.activated);
  backend.Linear(*weights.down, activations.activated, output, accumulate);
}

}  // namespace moed::model
