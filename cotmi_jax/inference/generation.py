"""Generation by a student that lies on a mesh for training. Imports no tensorflow."""

import jax
from jax.sharding import Mesh

from cotmi_jax.models.decoding import generate
from cotmi_jax.models.meshes import MeshShape, generation_mesh
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.parallel.mesh import reshape_mesh
from cotmi_jax.parallel.sharding import param_shardings, replicated


class Generation:
    """The jitted generation of one student, on a mesh of its own.

    Under fsdp every token would gather the whole decoder. So parameters are laid out anew before the first, with fsdp's
    share along tensor as far as it divides: as many bytes on each device, beside those of training.
    """

    def __init__(self, student: StudentDef, mesh: Mesh):
        self.mesh = reshape_mesh(mesh, generation_mesh(student.config, MeshShape(*mesh.devices.shape)))
        self._same = self.mesh == mesh
        self.shardings = param_shardings(student.shapes, student.axes, self.mesh)
        self._move = jax.jit(lambda params: params, out_shardings=self.shardings)
        # (params, inputs [B, S], decoding) → tokens [B, T] on every host, inside jax.set_mesh(self.mesh)
        self.generate = jax.jit(
            lambda params, inputs, decoding: generate(student.bind(params), inputs, decoding).tokens,
            static_argnames="decoding",
            out_shardings=replicated(self.mesh),
        )

    def reshard(self, params: Params) -> Params:
        """Parameters of the mesh for training on that for generation; themselves where both are one."""
        return params if self._same else self._move(params)
