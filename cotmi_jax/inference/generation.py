"""Generation by a student whose parameters are sharded for training. Imports no tensorflow."""

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from cotmi_jax.inference.segments import Segments, Tokens
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.meshes import MeshShape, generation_mesh
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.parallel.mesh import reshape_mesh
from cotmi_jax.parallel.sharding import param_shardings, replicated


class Generation:
    """The jitted generation of one student, on a mesh of its own.

    With fsdp, every generated token would gather all decoder parameters. So parameters are resharded before generation:
    the fsdp axis is moved to tensor as far as the dimensions divide. The copy takes as many bytes on each device as the
    parameters of training, in addition to them.
    """

    def __init__(self, student: StudentDef, mesh: Mesh):
        self.mesh = reshape_mesh(mesh, generation_mesh(student.config, MeshShape(*mesh.devices.shape)))
        self._student, self._segments = student, dict[tuple[Decoding, bool], Segments]()
        self._is_training_mesh = self.mesh == mesh
        self.shardings = param_shardings(student.shapes, student.axes, self.mesh)
        self._reshard = jax.jit(lambda params: params, out_shardings=self.shardings)
        # (params, inputs_BxS, encoded_BxSxD, key, decoding, scores) → Generated, replicated; call it in
        # jax.set_mesh(self.mesh). Inputs and their encoder states may be sharded over the mesh of training.
        # encoded_BxSxD None: it encodes.
        self.generate = jax.jit(
            lambda params, inputs_BxS, encoded_BxSxD, key=None, *, decoding, scores=False: generate(
                student.bind(params), inputs_BxS, decoding, key, encoded_BxSxD, scores=scores
            ),
            static_argnames=("decoding", "scores"),
            out_shardings=replicated(self.mesh),
        )

    def outputs(
        self,
        params: Params,
        inputs_BxS: Array,
        encoded_BxSxD: Array | None = None,
        key: Array | None = None,
        *,
        decoding: Decoding,
        scores: bool = False,
    ) -> Tokens:
        """What `generate` returns, on the host; a T5 on a single device generates it in segments."""
        if self.mesh.size > 1 or not isinstance(self._student.config, T5Config):
            found = self.generate(params, inputs_BxS, encoded_BxSxD, key, decoding=decoding, scores=scores)
            return Tokens(*jax.device_get(found))
        if (decoding, scores) not in self._segments:
            self._segments[decoding, scores] = Segments(self._student, decoding, scores=scores)
        return self._segments[decoding, scores](params, inputs_BxS, encoded_BxSxD, key)

    def tokens(
        self, params: Params, inputs_BxS: Array, encoded_BxSxD: Array | None = None, *, decoding: Decoding
    ) -> np.ndarray:
        """The tokens of `outputs`."""
        return self.outputs(params, inputs_BxS, encoded_BxSxD, decoding=decoding).tokens

    def reshard(self, params: Params) -> Params:
        """Parameters on the mesh of generation; unchanged if that is the mesh of training."""
        return params if self._is_training_mesh else self._reshard(params)
